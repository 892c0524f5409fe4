import contextlib
import fcntl
import http.server
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagen import storage
from imagen.data import shard_cache
from imagen.data.open_shards import OpenFile, OpenShards
from imagen.data.shard_cache import NoRoomError, Remote, ShardCache
from imagen.errors import ShardError, StorageError

SIZE = 1000


class Store(http.server.ThreadingHTTPServer):
    """A store of its own process: counts downloads, and may stop in the middle of one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.half_way = threading.Event()
        self.go_on = threading.Event()
        self.stops_at = ""
        self.busy = 0  # how many requests it refuses for now

    def put(self, name: str, data: bytes) -> Remote:
        self.files[f"/{name}"] = data
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        return Remote(url, len(data), storage.crc32c(data))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Store  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        data = self.server.files.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        if self.server.busy:
            self.server.busy -= 1
            self.send_response(503)
            self.end_headers()
            return
        self.do_HEAD()
        data = self.server.files.get(self.path, b"")
        self.server.downloads.append(self.path)
        half = len(data) // 2
        self.wfile.write(data[:half])
        self.wfile.flush()
        if self.path == self.server.stops_at:
            self.server.half_way.set()
            self.server.go_on.wait()
        with contextlib.suppress(OSError):  # its reader was killed
            self.wfile.write(data[half:])

    def log_message(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def remotes(store: Store) -> list[Remote]:
    return [store.put(f"{i}.tar", bytes([i]) * SIZE) for i in range(6)]


@pytest.fixture
def cache(tmp_path: Path) -> Callable[..., ShardCache]:
    return lambda files=3: ShardCache(str(tmp_path / "cache"), files * SIZE)


def held(tmp_path: Path, remotes: list[Remote]) -> list[int]:
    names = os.listdir(tmp_path / "cache" / "files")
    assert not any(storage.TEMP_MARK in name for name in names)
    return [i for i, remote in enumerate(remotes) if remote.name in names]


def read(cache: ShardCache, remote: Remote) -> bytes:
    return cache.use(remote, lambda path: Path(path).read_bytes())


def child(cache: ShardCache, code: str, *remotes: Remote) -> subprocess.Popen:
    """Start a process that has `cache` and `remotes`; `tell()` waits to be told to go on."""
    setup = "import pickle, sys; cache, remotes = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
    setup += "def tell(): print('ready', flush=True); sys.stdin.readline()\n"
    words = [sys.executable, "-c", setup + code, pickle.dumps((cache, remotes)).hex()]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ready(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_remote_file_is_downloaded_once_and_survives_the_store(store, remotes, cache):
    assert read(cache(), remotes[1]) == bytes([1]) * SIZE
    store.files.clear()
    assert read(cache(), remotes[1]) == bytes([1]) * SIZE
    assert store.downloads == ["/1.tar"]


@pytest.mark.slow
def test_many_processes_make_one_download_of_each_file(store, remotes, cache):
    code = "tell(); [cache.fetch(r) for r in remotes]"
    processes = [child(cache(6), code, *remotes) for _ in range(3)]
    for process in processes:
        ready(process)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted(store.downloads) == [f"/{i}.tar" for i in range(6)]


def test_the_files_used_longest_ago_make_room(tmp_path, remotes, cache):
    mine = cache()
    for age, i in enumerate((0, 1, 2)):
        os.utime(mine.fetch(remotes[i]), (age, age))
    mine.fetch(remotes[0])  # used again
    mine.fetch(remotes[3])
    assert held(tmp_path, remotes) == [0, 2, 3]


def test_what_is_needed_now_stays_and_what_is_next_goes_after_all_else(tmp_path, remotes, cache):
    mine, other = cache(), cache()
    for i in (0, 1, 2):
        mine.fetch(remotes[i])
    mine.pin(needed=[remotes[0]], ahead=[remotes[1]])
    other.fetch(remotes[3])
    assert held(tmp_path, remotes) == [0, 1, 3]
    other.pin(needed=[remotes[3]])
    with pytest.raises(NoRoomError, match="other processes hold it"):
        other.fetch(remotes[4], needed=False)
    assert held(tmp_path, remotes) == [0, 1, 3]
    other.fetch(remotes[4])
    assert held(tmp_path, remotes) == [0, 3, 4]
    mine.unpin()
    other.fetch(remotes[5])
    assert held(tmp_path, remotes) == [3, 4, 5]
    other.unpin()


def test_a_limit_below_what_is_needed_at_once_is_refused_with_the_numbers(remotes, cache):
    mine, other = cache(), cache()
    mine.pin(remotes[:2])
    with pytest.raises(NoRoomError, match=r"need 4 remote files at once, 4e-06 GB; .* hold 3e-06"):
        other.pin(remotes[1:4])
    other.unpin()
    other.pin(remotes[1:3])  # files that both need count once
    for one in (mine, other):
        one.unpin()


def test_a_file_larger_than_the_limit_is_refused(store, cache):
    with pytest.raises(NoRoomError, match="raise cache_gb"):
        cache().fetch(store.put("large", bytes(4 * SIZE)))


def test_pins_of_a_process_that_was_killed_hold_nothing(tmp_path, remotes, cache):
    mine = cache()
    for i in (0, 1, 2):
        mine.fetch(remotes[i])
    process = child(mine, "cache.pin(remotes); tell()", *remotes[:3])
    ready(process)
    with pytest.raises(NoRoomError):
        mine.fetch(remotes[3])
    kill(process)
    mine.fetch(remotes[3])
    assert 3 in held(tmp_path, remotes)


def test_a_download_that_was_killed_is_done_again(tmp_path, store, remotes, cache):
    store.stops_at = "/2.tar"
    process = child(cache(), "cache.fetch(remotes[0])", remotes[2])
    assert store.half_way.wait(60)
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 1
    kill(process)
    store.stops_at = ""
    assert read(cache(), remotes[2]) == bytes([2]) * SIZE
    assert held(tmp_path, remotes) == [2]


def test_a_killed_download_of_another_file_takes_no_room(tmp_path, store, remotes, cache):
    store.stops_at = "/2.tar"
    process = child(cache(1), "cache.fetch(remotes[0])", remotes[2])
    assert store.half_way.wait(60)
    kill(process)
    assert read(cache(1), remotes[0]) == bytes(SIZE)
    assert held(tmp_path, remotes) == [0]


def test_a_download_counts_before_it_is_there_and_is_waited_for(tmp_path, store, remotes, cache):
    mine = cache(1)
    store.stops_at = "/2.tar"
    first = threading.Thread(target=mine.fetch, args=(remotes[2],))
    first.start()
    assert store.half_way.wait(60)
    with pytest.raises(NoRoomError):
        mine.fetch(remotes[3], needed=False)
    second = threading.Thread(target=mine.fetch, args=(remotes[3],))
    second.start()  # waits, whenever it comes to it, for the first one
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 1
    store.go_on.set()
    first.join()
    second.join()
    assert held(tmp_path, remotes) == [3]


def test_a_file_that_changed_in_the_store_is_refused_and_not_kept(tmp_path, store, remotes, cache):
    store.put("1.tar", b"x" * SIZE)
    with pytest.raises(ShardError, match=r"1.tar` has changed since it was indexed: it has 1000"):
        cache().fetch(remotes[1])
    assert store.downloads == ["/1.tar"] * 2  # once more, in case the connection broke it
    assert held(tmp_path, remotes) == []


def test_a_missing_file_is_an_error_that_names_it(store, remotes, cache):
    del store.files["/0.tar"]
    with pytest.raises(StorageError, match=r"cannot read `http://.*/0.tar`: it does not exist"):
        cache().fetch(remotes[0])


def test_a_copy_that_the_disk_lost_a_part_of_is_fetched_again(store, remotes, cache):
    os.truncate(cache().fetch(remotes[1]), 10)
    assert read(cache(), remotes[1]) == bytes([1]) * SIZE
    assert len(store.downloads) == 2


def test_a_full_disk_is_an_error_before_the_download(store, remotes, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*tmp-download"):
            cache().fetch(remotes[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.downloads == []
    assert read(cache(), remotes[0]) == bytes(SIZE)


@pytest.mark.slow
def test_kills_at_any_moment_leave_a_cache_that_works(tmp_path, store, remotes, cache):
    code = "import itertools\nfor r in itertools.cycle(remotes): cache.pin([r]); cache.fetch(r)"
    for round_ in range(5):
        process = child(cache(2), "tell()\n" + code, *remotes)
        ready(process)
        count = len(store.downloads)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        while len(store.downloads) <= count + round_:  # some way into its work
            time.sleep(0)
        kill(process)
        for i, remote in enumerate(remotes):
            assert read(cache(2), remote) == bytes([i]) * SIZE
        assert len(held(tmp_path, remotes)) == 2


def test_an_evicted_file_can_be_read_by_who_has_it_open_and_is_let_go_of_then(
    tmp_path, remotes, cache
):
    class One:
        def __init__(self, number: int) -> None:
            self.file = cache(1).use(remotes[number], OpenFile)

        def is_evicted(self) -> bool:
            return self.file.is_deleted()

    shards = OpenShards(One)
    first = shards(0).file
    cache(1).fetch(remotes[1])
    assert first.read(10, 5) == bytes(5)
    assert shards(0).file is first
    shards(2)
    assert len(shards) == 1
    assert shards(0).file is not first  # fetched again


def test_an_open_file_that_ends_too_early_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    with pytest.raises(StorageError, match="ends at byte 5, not at 7"):
        OpenFile(str(tmp_path / "x")).read(3, 4)


def test_a_lock_held_for_a_moment_is_waited_for(tmp_path, remotes, cache):
    mine = cache()
    mine.fetch(remotes[0])
    with open(tmp_path / "cache" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=mine.fetch, args=(remotes[1],))
        thread.start()
        assert held(tmp_path, remotes) == [0]
    thread.join()
    assert held(tmp_path, remotes) == [0, 1]


def test_what_is_needed_now_is_insisted_on_when_the_store_is_busy(
    store, remotes, cache, monkeypatch
):
    monkeypatch.setattr(shard_cache, "_BRIEFLY_S", 0.1)
    store.busy = 1000
    with pytest.raises(StorageError, match=r"0\.tar"):
        cache().fetch(remotes[0], needed=False)  # there is time for that later
    store.busy = 1
    assert read(cache(), remotes[0]) == bytes(SIZE)
    assert (store.busy, store.downloads) == (0, ["/0.tar"])


def test_pins_that_are_refused_hold_nothing(remotes, cache):
    refused, other = cache(1), cache(1)
    with pytest.raises(NoRoomError):
        refused.pin(remotes[:2])
    other.pin(remotes[2:3])
    assert read(other, remotes[2]) == bytes([2]) * SIZE
    other.unpin()


def test_the_largest_limit_of_the_living_holds_for_all(tmp_path, remotes, cache):
    large, small = cache(4), cache(1)
    large.pin(remotes[:3])
    small.pin(remotes[3:4])
    for i in range(4):
        small.fetch(remotes[i])
    assert held(tmp_path, remotes) == [0, 1, 2, 3]
    large.unpin()
    small.unpin()
    small.fetch(remotes[4])
    assert held(tmp_path, remotes) == [4]


def test_files_of_others_and_torn_pins_do_no_harm(tmp_path, remotes, cache):
    mine, other = cache(1), cache(1)
    mine.pin(remotes[:1])
    (torn,) = (tmp_path / "cache" / "pins").iterdir()
    (tmp_path / "cache" / "pins" / "folder").mkdir()
    for text in ("", '{"needed": [', "[]", '{"needed": 1, "ahead": [], "limit": 1}'):
        torn.write_text(text)
        assert read(other, remotes[1]) == bytes([1]) * SIZE
    torn.write_text('{"needed": ["x"], "ahead": ["a-b-c"], "limit": 1}')
    (tmp_path / "cache" / "files" / ".nfs0001").write_bytes(bytes(9))
    assert read(other, remotes[2]) == bytes([2]) * SIZE
    assert other.room_bytes() > SIZE
    mine.unpin()


def test_pins_that_cannot_be_written_are_an_error_that_names_the_folder(tmp_path, remotes, cache):
    mine = cache()
    mine.fetch(remotes[0])
    (tmp_path / "cache" / "pins").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write `.*cache/pins`"):
        mine.pin(remotes[:1])
