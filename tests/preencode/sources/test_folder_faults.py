import errno

import pytest

from imagen import storage
from imagen.data import index, tars
from imagen.errors import ConfigError, StorageError
from preencode import importing
from preencode.sources import listing


@pytest.fixture
def after_listing(monkeypatch):
    """Do something between the listing of a source and its reading."""

    def make(act) -> None:
        real = importing.open_source

        def late(*given):
            source = real(*given)
            act()
            return source

        monkeypatch.setattr(importing, "open_source", late)

    return make


def test_files_that_go_or_change_while_they_are_imported_are_told(
    folder, photos, after_listing, read_import
):
    path = photos(6)

    def harm() -> None:
        (path / "album0" / "IMG 000.png").unlink()
        (path / "album1" / "IMG 001.txt").unlink()
        (path / "album2" / "IMG 002.png").unlink()
        (path / "album2" / "IMG 002.png").mkdir()
        (path / "album0" / "IMG 003.png").unlink()
        (path / "album0" / "IMG 003.png").symlink_to("IMG 003.png")

    after_listing(harm)
    c = folder(path)
    assert importing.run(c).left_out == {"missing_file": 3, "unreadable_file": 1}
    told = {f["where"]: (f["reason"], f["detail"]) for f in read_import(c).failures}
    assert told["album0/IMG 000.png"] == ("missing_file", "it is not there")
    assert told["album2/IMG 002.png"] == ("unreadable_file", "Is a directory")


def test_a_folder_that_goes_as_a_whole_is_no_fault_of_its_files(folder, photos, after_listing):
    path = photos(6)
    c = folder(path)

    def unmount() -> None:
        path.rename(path.with_name("elsewhere"))
        path.mkdir()

    after_listing(unmount)
    with pytest.raises(StorageError, match=r"cannot read .*: it does not exist"):
        importing.run(c)
    assert importing.done(c) is None


def test_a_disk_that_fails_is_no_fault_of_one_file(folder, photos, monkeypatch):
    c, real = folder(photos(6)), storage.get

    def failing(path):
        if path.endswith(".png"):
            try:
                raise OSError(errno.EIO, "Input/output error")
            except OSError as err:
                raise StorageError(f"cannot read `{path}`: Input/output error") from err
        return real(path)

    monkeypatch.setattr(storage, "get", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        importing.run(c)
    assert importing.done(c) is None


def test_a_file_that_goes_from_a_bucket_stops_the_import(folder, photos, tmp_path, after_listing):
    remote = f"memory://{tmp_path.name}/photos"
    for file in photos(3).rglob("*.*"):
        storage.put(f"{remote}/{file.name}", file.read_bytes())
    after_listing(lambda: storage.delete(f"{remote}/IMG 001.png"))
    with pytest.raises(StorageError, match=r"cannot read .*IMG 001\.png`: it does not exist"):
        importing.run(folder(remote))


def test_a_store_that_fails_is_told(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_: object) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "isdir", fail)
    with pytest.raises(StorageError, match=r"cannot look up `memory://x`: RuntimeError: no cred"):
        listing.files_below("memory://x")


def test_the_same_folder_by_another_name_or_in_another_place_is_the_same_import(
    folder, photos, tmp_path, monkeypatch
):
    path = photos(3)
    monkeypatch.chdir(tmp_path)
    assert importing.run(folder("photos")).fresh
    for spelled in ("./photos", path, f"{path}/", f"file://{path}"):
        assert importing.done(folder(spelled)) is not None
        assert not importing.run(folder(spelled)).fresh
    moved = path.rename(tmp_path / "moved")
    assert (
        importing.done(folder(moved)) is None
    )  # it is not known to be the same, until it is listed
    with pytest.raises(ConfigError, match="no finished import"):
        importing.list_tars(folder(moved))
    assert not importing.run(folder(moved)).fresh
    assert importing.done(folder(moved)) is not None
    assert importing.done(folder("photos")) is None


@pytest.mark.parametrize("out", ["photos", "photos/run", "link/run"])
def test_an_import_into_its_own_source_is_refused(config, photos, tmp_path, out):
    path = photos(3)
    (tmp_path / "link").symlink_to(path)
    c = config(f"source={{name: folder, path: {path}}}", f"out={tmp_path}/{out}")
    for act in (importing.run, importing.plan):
        with pytest.raises(
            ConfigError, match=r"is inside source\.path `.*photos`(.|\n)*hint: choose another `out`"
        ):
            act(c)
    assert len(list(path.rglob("*"))) == 3 + 6  # nothing was written
    beside = config(f"source={{name: folder, path: {path}}}", f"out={tmp_path}/photos2")
    assert importing.run(beside).samples == 3


def test_what_an_index_would_leave_out_makes_no_tar(folder, photos, picture, read_import):
    path = photos(2)
    (path / "pixel.png").write_bytes(picture(1, side=3))
    (path / "pixel.txt").write_text("a tracking pixel")
    (path / "page.png").write_bytes(picture(1))
    (path / "page.txt").write_text("x" * 70_000)
    c = folder(path, "shard_samples: 1")
    done = importing.run(c)
    assert (done.samples, done.shards) == (2, 2)
    assert done.left_out == {"caption_size": 1, "image_size": 1}
    for tar in importing.list_tars(c):
        assert index.index_tar(tars.open_tar(tar.path), tar.path, 0).bad == []


def test_links_that_are_not_followed_are_told(folder, photos, tmp_path, read_import):
    path = photos(3)
    (tmp_path / "elsewhere").mkdir()
    (path / "more").symlink_to(tmp_path / "elsewhere")
    (path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (path / "loop.png").symlink_to(path / "loop.png")
    (path / "under.png").symlink_to(path / "album0" / "IMG 000.png" / "x.png")
    c = folder(path)
    done = importing.run(c)
    assert done.ignored == {"linked folder": 1}
    assert done.left_out == {"missing_file": 2, "unreadable_file": 1}
    assert {f["where"]: f["detail"] for f in read_import(c).failures} == {
        "gone.png": "the link leads nowhere",
        "loop.png": "the link leads nowhere",
        "under.png": "the link cannot be followed",
    }
