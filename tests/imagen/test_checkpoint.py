import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagen import checkpoint, storage
from imagen.errors import CheckpointError

TENSORS = {"net/w": torch.arange(6.0).reshape(2, 3), "step/w": torch.tensor(4.0)}


def data_file(folder: str, images_seen: int) -> Path:
    (path,) = Path(folder, checkpoint.folder_name(images_seen)).glob("state-*.safetensors")
    return path


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://checkpoints{tmp_path}"


def test_what_is_saved_is_loaded(folder: str):
    checkpoint.save(folder, 12, TENSORS, {"seed": 3})
    found = checkpoint.latest(folder)
    assert found is not None
    assert (found.images_seen, found.meta) == (12, {"seed": 3})
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)


def test_no_checkpoint_is_none(folder: str):
    assert checkpoint.latest(folder) is None


def test_the_newest_is_the_one_with_most_images(folder: str):
    for images_seen in (1_000_000, 9, 200):
        checkpoint.save(folder, images_seen, TENSORS, {})
    assert checkpoint.saved(folder) == [9, 200, 1_000_000]
    assert checkpoint.load(folder, 200).images_seen == 200
    newest = checkpoint.latest(folder)
    assert newest is not None
    assert newest.images_seen == 1_000_000


def test_retention_deletes_the_oldest(folder: str):
    for images_seen in (1, 2, 3, 4):
        checkpoint.save(folder, images_seen, TENSORS, {})
    checkpoint.retain(folder, 2)
    assert checkpoint.saved(folder) == [3, 4]
    assert storage.listdir(storage.join(folder, checkpoint.folder_name(1))) == []
    assert checkpoint.load(folder, 3).images_seen == 3


def test_a_flipped_byte_is_found_and_the_older_checkpoint_is_taken(tmp_path: Path):
    for images_seen in (1, 2):
        checkpoint.save(str(tmp_path), images_seen, TENSORS, {})
    damaged = data_file(str(tmp_path), 2)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state-.* checksum"):
        checkpoint.load(str(tmp_path), 2)
    with pytest.warns(UserWarning, match="skipping a damaged checkpoint"):
        found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.images_seen == 1


@pytest.mark.parametrize("torn", ["data cut", "data gone", "manifest cut"])
def test_a_torn_newest_checkpoint_falls_back_with_a_warning(tmp_path: Path, torn: str):
    for images_seen in (1, 2):
        checkpoint.save(str(tmp_path), images_seen, TENSORS, {})
    data = data_file(str(tmp_path), 2)
    if torn == "data cut":
        data.write_bytes(data.read_bytes()[:-10])
    elif torn == "data gone":
        data.unlink()
    else:
        path = data.with_name(checkpoint.MANIFEST)
        path.write_bytes(path.read_bytes()[:30])
    with pytest.warns(UserWarning, match="skipping a damaged checkpoint"):
        found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.images_seen == 1


def test_who_asks_is_told_what_is_skipped_and_why(tmp_path: Path):
    for images_seen in (1, 2, 3):
        checkpoint.save(str(tmp_path), images_seen, TENSORS, {})
    data_file(str(tmp_path), 3).unlink()
    data_file(str(tmp_path), 2).write_bytes(b"")
    skipped: list[tuple[int, str]] = []
    found = checkpoint.latest(str(tmp_path), lambda *about: skipped.append(about))
    assert found is not None
    assert found.images_seen == 1
    assert [images_seen for images_seen, _ in skipped] == [3, 2]
    assert "does not exist" in skipped[0][1]
    assert "has 0 bytes" in skipped[1][1]


def test_without_its_manifest_a_checkpoint_is_not_there(tmp_path: Path):
    checkpoint.save(str(tmp_path), 1, TENSORS, {})
    data_file(str(tmp_path), 1).with_name(checkpoint.MANIFEST).unlink()
    assert checkpoint.latest(str(tmp_path)) is None


def test_two_writers_of_the_same_checkpoint_never_mix(tmp_path: Path):
    ones = {"net/w": torch.ones(3)}
    checkpoint.save(str(tmp_path), 1, TENSORS, {"writer": 1})
    checkpoint.save(str(tmp_path), 1, ones, {"writer": 2})
    found = checkpoint.load(str(tmp_path), 1)
    assert found.meta == {"writer": 2}
    assert found.tensors.keys() == ones.keys()


KILLED = """
import os, signal, sys, torch
from imagen import checkpoint
checkpoint.save(sys.argv[1], 1, {"w": torch.ones(3)}, {})
renames, rename = [], os.replace
def dies(a, b):
    renames.append(b)
    if len(renames) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(a, b)
os.replace = dies
checkpoint.save(sys.argv[1], 2, {"w": torch.ones(3)}, {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("rename", [1, 2])
def test_a_writer_killed_between_write_and_rename_leaves_the_older_one(tmp_path: Path, rename: int):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(rename)], cwd=Path.cwd()
    )
    assert done.returncode == -9
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.images_seen == 1
    checkpoint.save(str(tmp_path), 2, TENSORS, {})
    assert checkpoint.load(str(tmp_path), 2).tensors.keys() == TENSORS.keys()
