import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import fsspec.implementations.memory
import gcsfs.retry
import google.auth.exceptions
import pytest

from imagen import objects, staging, storage
from imagen.errors import StorageError
from imagen.retrying import Patience, patiently


@pytest.fixture(
    params=["local", "file://", "memory://", pytest.param("gs://", marks=pytest.mark.gcs)]
)
def folder(request, tmp_path):
    """One folder on each kind of storage: all keep the same contract."""
    if request.param == "memory://":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "gs://":
        return f"{request.getfixturevalue('gcs').url}/folder"
    return str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def test_what_is_put_is_got(folder):
    path = storage.join(folder, "a/b/c.bin")
    assert storage.put(path, b"\x00data") is True
    assert storage.get(path) == b"\x00data"
    assert storage.size(path) == 5
    assert storage.exists(path)


def test_putting_again_replaces(folder):
    path = storage.join(folder, "x")
    storage.put(path, b"long old content")
    storage.put(path, b"new")
    assert storage.get(path) == b"new"


def test_if_absent_writes_once_and_then_never_again(folder):
    path = storage.join(folder, "x")
    assert storage.put(path, b"first", if_absent=True) is True
    assert storage.put(path, b"second", if_absent=True) is False
    assert storage.get(path) == b"first"


def test_if_absent_tells_whether_the_file_holds_the_data_whoever_wrote_it(folder):
    path = storage.join(folder, "x")
    storage.put(path, b"same")
    assert storage.put(path, b"same", if_absent=True) is True
    assert storage.put(path, b"other", if_absent=True) is False
    assert storage.get(path) == b"same"


def test_a_file_is_replaced_only_in_the_version_that_was_read(folder):
    path = storage.join(folder, "x")
    assert storage.version_if_there(path) is None
    assert storage.replace(path, b"one", None) is True
    assert storage.replace(path, b"other", None) is False
    read = storage.version(path)
    assert storage.replace(path, b"second", read) is True
    assert storage.replace(path, b"of another", read) is False
    assert storage.get(path) == b"second"
    assert storage.replace(path, b"second", read) is True  # it holds just that, whoever wrote it
    read = storage.version(path)
    storage.delete(path)
    assert storage.replace(path, b"gone", read) is False
    assert not storage.exists(path)


def test_of_many_that_replace_what_they_read_none_is_lost(folder):
    if folder.startswith("memory://"):
        pytest.skip("looks and then writes: it keeps no version for others")
    path = storage.join(folder, "count")
    storage.put(path, b"0 nobody")

    def add(who: int) -> None:
        done = False
        while not done:
            version = storage.version(path)
            count = int(storage.get(path).split()[0])
            done = storage.replace(path, b"%d %d" % (count + 1, who), version)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    assert storage.get(path).split()[0] == b"8"


def test_of_many_that_create_one_wins(folder):
    path = storage.join(folder, "x")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.put(path, b"%d" % n, if_absent=True), range(8)))
    assert won.count(True) == 1
    assert storage.get(path) == b"%d" % won.index(True)


def test_a_folder_of_many_files_is_listed_whole(folder):
    if folder.startswith("gs://"):  # the server tells 1,000 a page
        names = [f"{number:04d}" for number in range(1100)]
    else:
        names = [f"{number:04d}" for number in range(20)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: storage.put(storage.join(folder, n), b""), names))
    assert storage.listdir(folder) == names
    assert storage.sizes(folder) == dict.fromkeys(names, 0)


@pytest.mark.parametrize("name", ["a b", "x+y", "50%", "ü", "'quoted'", "a=b&c"])
def test_names_may_be_odd(folder, name):
    path = storage.join(folder, name)
    storage.put(path, b"data")
    assert storage.get(path) == b"data"
    assert storage.scan(folder)[name].size == 4
    storage.delete(path)
    assert storage.listdir(folder) == []


def test_a_listing_tells_size_and_version_of_each_file(folder):
    for name, data in (("b", b"12345"), ("a", b""), ("sub/c", b"1")):
        storage.put(storage.join(folder, name), data)
    found = storage.scan(folder)
    assert list(found) == ["a", "b"]
    assert [entry.size for entry in found.values()] == [0, 5]
    assert found["b"].version == storage.version(storage.join(folder, "b"))
    assert storage.scan(storage.join(folder, "nowhere")) == {}


def test_a_staged_file_is_published_when_its_block_ends_well(folder):
    path = storage.join(folder, "a/x")
    storage.put(path, b"old")
    with staging.staged(path, 5) as temp:
        assert os.stat(temp).st_size == 5
        Path(temp).write_bytes(b"hello")
        assert storage.get(path) == b"old"
    assert storage.get(path) == b"hello"
    assert not os.path.exists(temp)


def test_a_staged_file_whose_block_fails_leaves_what_was_there(folder):
    path = storage.join(folder, "x")
    storage.put(path, b"old")
    with pytest.raises(KeyError), staging.staged(path, 5) as temp:
        raise KeyError
    assert storage.get(path) == b"old"
    assert not os.path.exists(temp)


FULL = """
import resource, sys
from imagen import staging
from imagen.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with staging.staged(sys.argv[1], 2000):
        print("the block ran")
except StorageError as err:
    print(err.message)
"""


def test_a_file_for_which_there_is_no_room_is_an_error_before_anything_is_computed(tmp_path):
    """A limit on file sizes stands in for a full disk: the kernel refuses both at the same call."""
    path = str(tmp_path / "x")
    words = [sys.executable, "-c", FULL, path]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert told == f"cannot write `{path}`: File too large\n"
    assert not list(tmp_path.iterdir())


def test_a_range_holds_its_bytes_alone(folder):
    path = storage.join(folder, "x")
    storage.put(path, b"0123456789")
    assert storage.get_range(path, 3, 4) == b"3456"
    assert storage.get_range(path, 10, 0) == b""


def test_a_range_of_a_local_file_is_read_without_the_rest(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)  # nobody has the memory to read it whole
    assert storage.get_range(str(path), 2**39, 4) == bytes(4)


class Bucket(fsspec.implementations.memory.MemoryFileSystem):
    """A store that notes the ranges it is asked for, and fails as gcsfs does, on request."""

    protocol = "bucket"
    cachable = False
    asked: ClassVar[list] = []
    error: ClassVar[Exception | None] = None

    def cat_file(self, path, start=None, end=None, **_):
        if self.error is not None:
            raise self.error
        self.asked.append((start, end))
        return super().cat_file(path, start, end)


@pytest.fixture
def bucket(monkeypatch):
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "asked", [])
    url = f"bucket://{uuid.uuid4().hex}/x"
    storage.put(url, b"0123456789")
    return url


def test_a_range_of_an_object_is_asked_for_without_the_rest(bucket):
    assert storage.get_range(bucket, 3, 4) == b"3456"
    assert Bucket.asked == [(3, 7)]


@pytest.mark.parametrize(
    "error",
    [
        gcsfs.retry.HttpError({"code": 503, "message": "backend"}),
        google.auth.exceptions.RefreshError("token"),
    ],
)
def test_what_a_store_raises_of_its_own_is_a_storage_error_with_a_hint(bucket, monkeypatch, error):
    monkeypatch.setattr(Bucket, "error", error)
    with pytest.raises(
        StorageError,
        match=rf"cannot read `{bucket}`: {type(error).__name__}: \w+(.|\n)*credentials",
    ):
        patiently(lambda: storage.get(bucket), bucket, Patience(deadline_s=0.1))


def test_a_bug_on_a_local_path_keeps_its_traceback(tmp_path):
    with pytest.raises(TypeError):
        storage.put(str(tmp_path / "x"), "text")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_range_past_the_end_is_an_error_with_the_byte(folder):
    path = storage.join(folder, "x")
    storage.put(path, b"0123456789")
    with pytest.raises(StorageError, match=r"ends at byte 10, not at 12"):
        storage.get_range(path, 8, 4)


@pytest.mark.parametrize("read", [storage.get, storage.size, lambda p: storage.get_range(p, 0, 1)])
def test_a_missing_file_is_an_error_that_names_it(folder, read):
    with pytest.raises(StorageError, match="none`: it does not exist"):
        read(storage.join(folder, "none"))


def test_a_folder_is_listed_sorted_with_files_and_folders(folder):
    for name in ("b", "a", "sub/c"):
        storage.put(storage.join(folder, name), b"")
    assert storage.listdir(folder) == ["a", "b", "sub"]


def test_a_missing_folder_lists_as_empty(folder):
    assert storage.listdir(storage.join(folder, "none")) == []


def test_a_folder_is_no_file(folder):
    storage.put(storage.join(folder, "sub/c"), b"")
    assert not storage.exists(storage.join(folder, "sub"))


def test_deleting_is_idempotent(folder):
    path = storage.join(folder, "x")
    storage.put(path, b"")
    storage.delete(path)
    storage.delete(path)
    assert not storage.exists(path)


def test_an_unknown_kind_of_storage_is_an_error():
    with pytest.raises(StorageError, match=r"cannot open `nope://x`.*nope"):
        storage.get("nope://x")


def test_paths_are_joined_and_named_alike_for_urls():
    assert storage.join("gs://b/run", "a", "b.json") == "gs://b/run/a/b.json"
    assert storage.name("gs://b/run/") == "run"
    assert storage.local("file:///tmp/x") == "/tmp/x"


def test_the_checksum_is_crc32c_as_rfc_3720_gives_it():
    assert storage.crc32c(bytes(32)) == "8a9136aa"  # RFC 3720, B.4: 32 bytes of zeroes
    assert storage.crc32c(b"\xff" * 32) == "62a8ab43"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_before_the_rename_leaves_the_old_content_and_no_litter(
    tmp_path, monkeypatch, step
):
    path = str(tmp_path / "x")
    storage.put(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.put(path, b"new")
    assert storage.get(path) == b"old"
    assert os.listdir(tmp_path) == ["x"]


KILLED_WRITER = """
import os, sys
from imagen import storage
real = os.replace
def stop_here(*args):
    print("written", flush=True)
    os.kill(os.getpid(), 9)
os.replace = stop_here
storage.put(sys.argv[1], b"new")
"""


def test_a_kill_between_write_and_rename_leaves_the_old_file_and_a_hidden_leftover(tmp_path):
    path = str(tmp_path / "x")
    storage.put(path, b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, path], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b"written\n"
    assert storage.get(path) == b"old"
    assert storage.listdir(str(tmp_path)) == ["x"]
    assert len(os.listdir(tmp_path)) == 2


def test_the_sweep_deletes_old_leftovers_only(tmp_path):
    for name in ("x", f"x{storage.TEMP_MARK}1-old", f"x{storage.TEMP_MARK}2-new"):
        (tmp_path / name).write_bytes(b"")
    long_ago = time.time() - 7200
    for name in ("x", f"x{storage.TEMP_MARK}1-old"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    assert storage.sweep_temporary(str(tmp_path)) == 1
    assert sorted(os.listdir(tmp_path)) == ["x", f"x{storage.TEMP_MARK}2-new"]


def test_a_leftover_that_somebody_else_takes_meanwhile_does_not_stop_the_sweep(
    tmp_path, monkeypatch
):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}{storage.TEMP_MARK}1").touch()
    unlink = os.unlink

    def raced(path):
        unlink(path)
        if path.startswith(str(tmp_path / "b")):
            raise FileNotFoundError(path)

    monkeypatch.setattr(os, "unlink", raced)
    assert storage.sweep_temporary(str(tmp_path), older_than_s=-1) == 2
    assert not list(tmp_path.iterdir())


def test_sweeping_a_missing_or_remote_folder_deletes_nothing(tmp_path):
    assert storage.sweep_temporary(str(tmp_path / "none")) == 0
    assert storage.sweep_temporary("memory://somewhere") == 0


def test_a_remote_file_is_downloaded_as_it_is(folder, tmp_path, monkeypatch):
    if storage.is_local(folder):
        pytest.skip("nobody downloads a local file")
    monkeypatch.setattr(objects, "PIECE_BYTES", 1000)
    data = os.urandom(10_500)
    storage.put(storage.join(folder, "x"), data)
    for old in (b"", bytes(20_000)):
        (tmp_path / "x").write_bytes(old)
        storage.download(storage.join(folder, "x"), str(tmp_path / "x"))
        assert (tmp_path / "x").read_bytes() == data
    storage.put(storage.join(folder, "empty"), b"")
    storage.download(storage.join(folder, "empty"), str(tmp_path / "empty"))
    assert (tmp_path / "empty").read_bytes() == b""
    with pytest.raises(StorageError, match=r"cannot read `.*y`: it does not exist"):
        storage.download(storage.join(folder, "y"), str(tmp_path / "y"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error_with_a_hint(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied") as caught:
        storage.put(str(tmp_path / "x"), b"")
    assert "permissions" in caught.value.hint


def test_a_file_where_a_folder_is_needed_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        storage.put(str(tmp_path / "x" / "y"), b"")


@pytest.mark.parametrize("root", ["local", "memory"])
def test_the_version_of_a_file_changes_when_it_is_replaced(root, tmp_path):
    path = f"{tmp_path}/f" if root == "local" else f"memory://version-{tmp_path.name}/f"
    storage.put(path, b"one")
    first = storage.version(path)
    assert storage.version(path) == first
    time.sleep(0.02)  # file systems keep times in ticks of some milliseconds
    storage.put(path, b"two")
    assert storage.version(path) != first
