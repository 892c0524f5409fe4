import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from imagen import checkpoint, manifest, sharded, slice_files, storage
from imagen.errors import DamagedError, StorageError
from imagen.slice_files import Reader

TENSORS = {"net/w": torch.arange(6.0).reshape(2, 3), "step/w": torch.tensor(4.0)}


def data_file(folder: str, images_seen: int) -> Path:
    (path,) = Path(folder, checkpoint.folder_name(images_seen)).glob("state-*.safetensors")
    return path


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://checkpoints{tmp_path}"


def test_what_is_saved_is_loaded(folder: str):
    checkpoint.save(folder, 12, TENSORS, {"seed": 3})
    found = checkpoint.load(folder, 12)
    assert (found.images_seen, found.meta) == (12, {"seed": 3})
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)


def test_no_checkpoint_is_none(folder: str):
    assert checkpoint.saved(folder) == []


def test_the_newest_is_the_one_with_most_images(folder: str):
    for images_seen in (1_000_000, 9, 200):
        checkpoint.save(folder, images_seen, TENSORS, {})
    assert checkpoint.saved(folder) == [9, 200, 1_000_000]
    assert checkpoint.load(folder, 200).images_seen == 200


def test_a_deleted_checkpoint_leaves_nothing(folder: str):
    for images_seen in (1, 3):
        checkpoint.save(folder, images_seen, TENSORS, {})
    checkpoint.delete(folder, 1)
    assert checkpoint.saved(folder) == [3]
    assert storage.listdir(storage.join(folder, checkpoint.folder_name(1))) == []
    assert checkpoint.load(folder, 3).images_seen == 3


def test_a_flipped_byte_is_found(tmp_path: Path):
    for images_seen in (1, 2):
        checkpoint.save(str(tmp_path), images_seen, TENSORS, {})
    damaged = data_file(str(tmp_path), 2)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DamagedError, match=r"state-.* checksum"):
        checkpoint.load(str(tmp_path), 2)
    assert checkpoint.load(str(tmp_path), 1).images_seen == 1


@pytest.mark.parametrize(
    ("torn", "reason"),
    [
        ("data cut", r"has \d+ bytes, its manifest says"),
        ("data gone", "does not exist, and its manifest lists it"),
        ("manifest cut", "is damaged"),
        ("layout changed", "with checksum"),
    ],
)
def test_a_torn_checkpoint_is_told_as_damaged(tmp_path: Path, torn: str, reason: str):
    checkpoint.save(str(tmp_path), 2, TENSORS, {})
    data = data_file(str(tmp_path), 2)
    if torn == "data cut":
        data.write_bytes(data.read_bytes()[:-10])
    elif torn == "data gone":
        data.unlink()
    elif torn == "layout changed":
        (path,) = data.parent.glob("layout-*.json")
        path.write_bytes(path.read_bytes().replace(b"[2,3]", b"[3,2]"))
    else:
        path = data.with_name(checkpoint.MANIFEST)
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DamagedError, match=reason):
        checkpoint.look_into(str(tmp_path), 2)


def test_without_its_manifest_a_checkpoint_is_not_there(tmp_path: Path):
    checkpoint.save(str(tmp_path), 1, TENSORS, {})
    data_file(str(tmp_path), 1).with_name(checkpoint.MANIFEST).unlink()
    assert checkpoint.saved(str(tmp_path)) == []


def test_two_writers_of_the_same_checkpoint_never_mix(tmp_path: Path):
    ones = {"net/w": torch.ones(3)}
    checkpoint.save(str(tmp_path), 1, TENSORS, {"writer": 1})
    checkpoint.save(str(tmp_path), 1, ones, {"writer": 2})
    found = checkpoint.load(str(tmp_path), 1)
    assert found.meta == {"writer": 2}
    assert found.tensors.keys() == ones.keys()


class Paused:
    """A writer of a checkpoint that is stopped between its data and its manifest."""

    def __init__(self, folder: str, images_seen: int, replace: bool) -> None:
        self.paused, self.go, self.failure = threading.Event(), threading.Event(), None
        self.args = (folder, images_seen, sharded.Staged(TENSORS), {"writer": "stale"})
        self.replace = replace
        self.thread = threading.Thread(target=self.write, name="stale")
        self.thread.start()
        assert self.paused.wait(60)

    def write(self) -> None:
        try:
            sharded.write(*self.args, replace=self.replace)
        except StorageError as err:
            self.failure = err

    def go_on(self) -> None:
        self.go.set()
        self.thread.join()


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch):
    """Return what begins a checkpoint and stops before its manifest."""
    finish, writers = slice_files.Writer.finish, []

    def paused(self, metadata, results):
        if threading.current_thread().name == "stale":
            writers[0].paused.set()
            assert writers[0].go.wait(60)
        finish(self, metadata, results)

    class Begun(Paused):
        def __init__(self, *args) -> None:
            writers.append(self)
            super().__init__(*args)

    monkeypatch.setattr(slice_files.Writer, "finish", paused)
    return Begun


def test_a_writer_that_comes_back_leaves_its_successors_checkpoint_as_it_is(folder: str, pause):
    stale = pause(folder, 2, False)
    checkpoint.save(folder, 2, TENSORS, {"writer": "successor"})
    before = set(storage.listdir(storage.join(folder, checkpoint.folder_name(2))))
    stale.go_on()
    assert stale.failure is None
    assert checkpoint.load(folder, 2).meta == {"writer": "successor"}
    after = set(storage.listdir(storage.join(folder, checkpoint.folder_name(2))))
    assert after < before  # its own data are gone


@pytest.mark.parametrize("successor", [2, 3])
def test_a_writer_whose_data_were_swept_publishes_no_manifest(folder: str, pause, successor: int):
    stale = pause(folder, 2, True)
    checkpoint.save(folder, successor, TENSORS, {"writer": "successor"})
    checkpoint.sweep(folder, successor)
    stale.go_on()
    assert "was deleted or changed before its checkpoint was complete" in str(stale.failure)
    assert checkpoint.saved(folder) == [successor]
    assert checkpoint.load(folder, successor).meta == {"writer": "successor"}


@pytest.mark.parametrize("torn", ["data gone", "nothing"])
def test_a_checkpoint_that_was_fallen_back_from_is_written_again(folder: str, torn: str):
    checkpoint.save(folder, 2, TENSORS, {"writer": "before"})
    if torn == "data gone":
        own = storage.join(folder, checkpoint.folder_name(2))
        storage.delete(storage.join(own, storage.listdir(own)[-1]))
    again = torn == "nothing"  # its bytes are bad: only who reads them finds out
    sharded.write(folder, 2, sharded.Staged(TENSORS), {"writer": "after"}, replace=again)
    assert checkpoint.load(folder, 2).meta == {"writer": "after"}


def test_only_what_is_asked_for_is_read_and_each_piece_is_verified(tmp_path: Path, monkeypatch):
    tensors = {"a": torch.randn(300_000), "b": torch.randn(300_000), "c": torch.randn(7)}
    folder = str(tmp_path)
    checkpoint.save(folder, 1, tensors, {})
    read, get_range = [], storage.get_range
    monkeypatch.setattr(
        storage, "get_range", lambda path, a, n: read.append(n) or get_range(path, a, n)
    )
    state = {"b": torch.zeros(300_000)}
    sharded.read_into(state, checkpoint.look_into(folder, 1))
    assert torch.equal(state["b"], tensors["b"])
    assert read == [4 * 300_000]
    damaged = data_file(folder, 1)
    content = bytearray(damaged.read_bytes())
    place = checkpoint.look_into(folder, 1).layout["a"].slices[0]
    content[place.start + 5] ^= 1
    damaged.write_bytes(content)
    sharded.read_into(state, checkpoint.look_into(folder, 1))  # b is whole
    with pytest.raises(DamagedError, match=f"1200000 bytes from {place.start}, its layout says"):
        sharded.read_into({"a": torch.zeros(300_000)}, checkpoint.look_into(folder, 1))


def test_any_program_that_uses_torch_can_open_a_checkpoint(folder: str):
    checkpoint.save(folder, 5, TENSORS, {})
    state = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    reader = Reader(checkpoint.look_into(folder, 5))
    with pytest.warns(UserWarning, match=r"torch\.distributed is"):
        dcp.load(state, storage_reader=reader)
    assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)


def test_a_rank_writes_several_files_when_it_has_much(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(slice_files, "FILE_BYTES", 1000)
    tensors = {str(i): torch.randn(100) for i in range(7)}
    checkpoint.save(str(tmp_path), 1, tensors, {})
    assert len(list(tmp_path.glob("*/state-*.safetensors"))) == 4
    found = checkpoint.load(str(tmp_path), 1).tensors
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_tensors_of_every_type_and_shape_come_back(folder: str):
    tensors = {
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 6).t(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        **{str(t): torch.arange(5).to(t) for t in (torch.bfloat16, torch.float64, torch.bool)},
    }
    checkpoint.save(folder, 1, tensors, {})
    found = checkpoint.load(folder, 1).tensors
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_what_is_saved_is_what_was_when_it_was_staged(folder: str):
    state = {"w": torch.ones(3)}
    staged = sharded.Staged(state)
    state["w"].mul_(5)
    sharded.write(folder, 1, staged, {})
    assert torch.equal(checkpoint.load(folder, 1).tensors["w"], torch.ones(3))


def old_format(folder: str, images_seen: int) -> None:
    """Write a checkpoint as it was before there were layouts."""
    own = storage.join(folder, checkpoint.folder_name(images_seen))
    data = safetensors.torch.save(TENSORS)
    files = manifest.put_files(own, {"state-0123456789ab.safetensors": data})
    body = {"images_seen": images_seen, "meta": {"seed": 3}, "files": files}
    manifest.write(storage.join(own, checkpoint.MANIFEST), checkpoint.KIND, body)


def test_a_checkpoint_of_the_older_format_opens(tmp_path: Path):
    old_format(str(tmp_path), 9)
    found = checkpoint.load(str(tmp_path), 9)
    assert (found.images_seen, found.meta) == (9, {"seed": 3})
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    data = data_file(str(tmp_path), 9)
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(DamagedError, match=r"state-.* with checksum"):
        checkpoint.load(str(tmp_path), 9)


def test_leftovers_of_killed_writers_go_and_what_is_newer_or_listed_stays(tmp_path: Path):
    folder = str(tmp_path)
    for images_seen in (1, 2, 3, 4):
        checkpoint.save(folder, images_seen, TENSORS, {})
    (data_file(folder, 2).with_name(checkpoint.MANIFEST)).unlink()  # killed before its manifest
    (data_file(folder, 4).with_name(checkpoint.MANIFEST)).unlink()
    own = tmp_path / checkpoint.folder_name(3)
    listed = {path.name for path in own.iterdir()}
    for name in ("state-lost-00000-000.safetensors", "layout-lost.json", "x.tmp-1"):
        (own / name).write_bytes(b"left")
    checkpoint.sweep(folder, 3)
    assert {path.name for path in own.iterdir()} == listed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        checkpoint.folder_name(images_seen) for images_seen in (1, 3, 4)
    ]
    assert checkpoint.load(folder, 3).tensors.keys() == TENSORS.keys()
    assert data_file(folder, 4).exists()  # whoever writes it may live


def test_a_sweep_after_a_checkpoint_that_is_gone_touches_nothing(tmp_path: Path):
    checkpoint.save(str(tmp_path), 1, TENSORS, {})
    (data_file(str(tmp_path), 1).with_name(checkpoint.MANIFEST)).unlink()
    checkpoint.sweep(str(tmp_path), 2)
    assert data_file(str(tmp_path), 1).exists()
