"""What goes wrong between us and a bucket, and what comes of it: nothing, or an error in time."""

import functools
import os

import pytest
import torch

from imagen import checkpoint, manifest, retrying, staging, storage
from imagen import gcs as gcs_module
from imagen.errors import DamagedError, StorageError
from imagen.retrying import PATIENT, Patience, patiently
from runtime import log
from runtime.log import JsonLog

pytestmark = [
    pytest.mark.gcs,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

DATA = os.urandom(300_000)
TIMES = 2
"""Each request that is asked for fails so often in a row: less than the quick tries forgive."""
FAULTS = {
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429},
    "500": {"kind": "status", "status": 500},
    "lost": {"kind": "lost"},
    "truncate": {"kind": "truncate"},
    "slow": {"kind": "slow", "seconds": 0.2},
    "reset": {"kind": "reset"},
    "latency": {"kind": "latency", "seconds": 0.2},
}


def put(url: str) -> None:
    assert storage.put(f"{url}/x", DATA) is True
    assert storage.get(f"{url}/x") == DATA


def create(url: str) -> None:
    assert storage.put(f"{url}/x", DATA, if_absent=True) is True
    assert storage.put(f"{url}/x", b"other", if_absent=True) is False
    assert storage.get(f"{url}/x") == DATA


def replace(url: str) -> None:
    assert storage.replace(f"{url}/x", b"one", None) is True
    read = storage.version(f"{url}/x")
    assert storage.replace(f"{url}/x", b"two", read) is True
    assert storage.replace(f"{url}/x", b"three", read) is False
    assert storage.get(f"{url}/x") == b"two"


def ranges(url: str) -> None:
    storage.put(f"{url}/x", DATA)
    assert storage.get_range(f"{url}/x", 1000, 5000) == DATA[1000:6000]


def look_up(url: str) -> None:
    assert storage.exists(f"{url}/x") is False
    storage.put(f"{url}/x", DATA)
    assert storage.exists(f"{url}/x") is True
    assert storage.size(f"{url}/x") == len(DATA)
    assert storage.version(f"{url}/x") == storage.scan(url)["x"].version


def listing(url: str) -> None:
    for name in ("a", "b", "c/d"):
        storage.put(f"{url}/{name}", b"1")
    assert storage.listdir(url) == ["a", "b", "c"]
    assert storage.sizes(url) == {"a": 1, "b": 1}
    assert storage.listdir(f"{url}/none") == []


def delete(url: str) -> None:
    storage.put(f"{url}/x", DATA)
    storage.delete(f"{url}/x")
    storage.delete(f"{url}/x")
    assert storage.listdir(url) == []


def manifests(url: str) -> None:
    entry = manifest.put_files(url, {"data": DATA})
    manifest.write(f"{url}/m.json", "test", {"files": entry})
    assert manifest.read_if_complete(f"{url}/m.json", "test")["files"] == entry
    assert manifest.read(f"{url}/m.json", "test")["files"] == entry


def download(url: str, tmp_path) -> None:
    storage.put(f"{url}/x", DATA)
    storage.download(f"{url}/x", str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == DATA


def staged(url: str) -> None:
    with (
        staging.staged(f"{url}/x", 6 * 2**20) as temp,  # resumable: more than 5 MiB
        open(temp, "r+b") as file,
    ):
        file.write(DATA)
    assert storage.get(f"{url}/x") == DATA + bytes(6 * 2**20 - len(DATA))


def json_log(url: str) -> None:
    for start in range(2):
        with JsonLog(f"{url}/log.jsonl") as out:
            out.write(start=start)
    assert [event["start"] for event in log.read(f"{url}/log.jsonl")] == [0, 1]


def checkpoints(url: str) -> None:
    tensors = {"w": torch.arange(1000.0), "b": torch.ones(3, 5)}
    checkpoint.save(url, 8, tensors, {"a": 1})
    checkpoint.save(url, 16, tensors, {"a": 2})
    checkpoint.delete(url, 8)
    checkpoint.sweep(url, 16)
    found = checkpoint.load(url, 16)
    assert found.meta == {"a": 2}
    assert all(torch.equal(found.tensors[name], t) for name, t in tensors.items())
    assert checkpoint.saved(url) == [16]


WORK = {
    "put, get": put,
    "create-only": create,
    "replace a version": replace,
    "range": ranges,
    "look up": look_up,
    "listing": listing,
    "delete": delete,
    "manifest": manifests,
    "download": download,
    "staged upload": staged,
    "JSON log": json_log,
    "checkpoint": checkpoints,
}


@pytest.fixture
def quick(monkeypatch):
    """Pauses that take no time."""
    monkeypatch.setattr(gcs_module, "QUICK_S", (0.01, 0.01))
    before = {name: getattr(PATIENT, name) for name in ("first_pause_s", "longest_pause_s")}
    for name in before:
        object.__setattr__(PATIENT, name, 0.02)
    yield
    for name, value in before.items():
        object.__setattr__(PATIENT, name, value)


def do(work: str, url: str, tmp_path) -> None:
    action = WORK[work]
    action(url, tmp_path) if action is download else action(url)


@pytest.fixture
def note(record_property, gcs):
    """Note how often a fault was injected, for the table in docs/storage.md."""

    def write(fault: str, work: str, outcome: str) -> int:
        times = gcs.server.injected() if fault != "latency" else gcs.server.counts()["requests"]
        print(f"| {fault} | {work} | {times} | {outcome} |")
        return times

    return write


@pytest.mark.parametrize("work", list(WORK))
@pytest.mark.parametrize("fault", list(FAULTS))
def test_each_request_that_fails_twice_in_a_row_does_no_harm(
    gcs, quick, note, tmp_path, fault: str, work: str
):
    """Every request, in the order in which it comes: the first two fail, the third goes on."""
    storage.exists(f"{gcs.url}/first")
    nth = [number for number in range(1, 1000) if number % 3]
    wanted = FAULTS[fault] | ({} if fault in ("latency", "slow") else {"nth": nth})
    gcs.server.faults(wanted)
    do(work, f"{gcs.url}/run", tmp_path)
    assert note(fault, work, "same result") > 0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("work", list(WORK))
def test_requests_that_fail_at_random_do_no_harm(gcs, quick, note, tmp_path, work: str, seed: int):
    gcs.server.faults({"kind": "any", "probability": 0.3}, seed=seed)
    for number in range(2):
        do(work, f"{gcs.url}/{number}", tmp_path)
    assert note("any, 30 % of requests", work, "same result") > 0


@pytest.mark.parametrize("work", list(WORK))
def test_what_is_denied_is_told_at_once(gcs, tmp_path, note, work: str):
    storage.exists(f"{gcs.url}/first")
    gcs.server.faults({"kind": "status", "status": 403})
    if work == "JSON log":
        with pytest.raises(StorageError, match="permission denied"):
            json_log(gcs.url)
    else:
        with pytest.raises(StorageError, match=rf"`{gcs.url}/.*permission denied"):
            do(work, f"{gcs.url}/run", tmp_path)
    assert note("denied (403)", work, "error that names the file") <= 3


@pytest.mark.parametrize("work", list(WORK))
def test_a_store_that_stays_away_is_an_error_at_the_deadline(gcs, quick, tmp_path, note, work: str):
    storage.exists(f"{gcs.url}/first")
    gcs.server.faults({"kind": "status", "status": 503})
    hasty = Patience(deadline_s=0.5, first_pause_s=0.05)
    with pytest.raises(StorageError, match=r"Unavailable.*\(tried \d+ times in \d+ s\)"):
        patiently(lambda: do(work, f"{gcs.url}/run", tmp_path), gcs.url, hasty)
    assert note("503 for ever", work, "error at the deadline") > 3


def test_a_request_that_hangs_is_left_behind_at_the_deadline(gcs):
    storage.put(f"{gcs.url}/x", b"data")
    gcs.server.faults({"kind": "hang", "seconds": 600})
    with pytest.raises(StorageError, match="no answer in"):
        patiently(lambda: storage.get(f"{gcs.url}/x"), gcs.url, Patience(deadline_s=0.5))
    gcs.server.faults()
    assert storage.get(f"{gcs.url}/x") == b"data"


def test_a_request_that_hangs_is_asked_again(gcs, quick, monkeypatch):
    import aiohttp

    storage.put(f"{gcs.url}/x", b"data")
    short = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=0.3)
    monkeypatch.setattr(gcs_module, "TIMEOUT", short)
    gcs.server.faults({"kind": "hang", "seconds": 600, "times": 4})
    assert storage.get(f"{gcs.url}/x") == b"data"


def test_an_upload_that_ends_in_the_middle_leaves_what_was_there(gcs, quick):
    """All chunks but the last arrive, then the store is away: nothing is published."""
    storage.put(f"{gcs.url}/x", b"old")
    gcs.server.faults({"kind": "status", "status": 503, "path": "upload_id", "method": "POST|PUT"})
    hasty = Patience(deadline_s=0.5, first_pause_s=0.05)
    with pytest.raises(StorageError, match="Unavailable"):
        patiently(functools.partial(staged, gcs.url), gcs.url, hasty)
    gcs.server.faults()
    assert storage.get(f"{gcs.url}/x") == b"old"


def test_a_checkpoint_whose_manifest_cannot_be_written_is_none(gcs, quick):
    tensors = {"w": torch.arange(1000.0)}
    checkpoint.save(gcs.url, 8, tensors, {})
    gcs.server.faults(
        {
            "kind": "status",
            "status": 503,
            "path": "/o/?.*",
            "method": "POST",
            "nth": list(range(3, 99)),
        }
    )
    with pytest.raises(StorageError, match="Unavailable"):
        patiently(
            functools.partial(checkpoint.save, gcs.url, 16, tensors, {}), gcs.url, Patience(1.0)
        )
    gcs.server.faults()
    assert checkpoint.saved(gcs.url) == [8]
    with pytest.raises(DamagedError):
        checkpoint.load(gcs.url, 16)
    assert len(gcs.server.objects(f"{gcs.url}/000000000016/")) == 2  # data, no manifest


def test_a_create_whose_answer_was_lost_knows_that_it_has_won(gcs):
    storage.exists(f"{gcs.url}/first")
    gcs.server.faults({"kind": "lost", "method": "POST", "times": 1})
    assert storage.put(f"{gcs.url}/x", b"mine", if_absent=True) is True
    assert gcs.server.counts()["rules"][0]["injected"] == 1
    assert storage.put(f"{gcs.url}/x", b"of another", if_absent=True) is False


def test_two_writers_of_one_checkpoint_leave_one_that_is_whole(gcs, monkeypatch):
    """The one that was thought dead looks; its successor publishes and sweeps; then it goes on."""
    old = {"w": torch.zeros(1000)}
    new = {"w": torch.ones(1000)}
    replace_as_it_is, once = manifest.replace, []

    def late(path, kind, body, version):
        if not once:
            once.append(path)
            checkpoint.save(gcs.url, 8, new, {"by": "successor"})
            checkpoint.sweep(gcs.url, 8)
        return replace_as_it_is(path, kind, body, version)

    monkeypatch.setattr(manifest, "replace", late)
    with pytest.raises(StorageError, match="deleted or changed before its checkpoint was complete"):
        checkpoint.save(gcs.url, 8, old, {"by": "thought dead"})
    found = checkpoint.load(gcs.url, 8)
    assert found.meta == {"by": "successor"}
    assert torch.equal(found.tensors["w"], new["w"])


def test_a_download_that_changes_meanwhile_is_begun_again(gcs, quick, monkeypatch, tmp_path):
    from imagen import objects

    monkeypatch.setattr(objects, "PIECE_BYTES", 1000)
    monkeypatch.setattr(objects, "AT_ONCE", 1)
    storage.put(f"{gcs.url}/x", bytes(10_000))
    piece, count = objects._piece, []

    def change(fs, path, start, end):
        count.append(start)
        if len(count) == 5:
            storage.put(f"{gcs.url}/x", b"1" * 10_000)
        return piece(fs, path, start, end)

    monkeypatch.setattr(objects, "_piece", change)
    storage.download(f"{gcs.url}/x", str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == b"1" * 10_000
    assert len(count) == 20


def test_long_waits_are_told_without_a_traceback(gcs, caplog, monkeypatch):
    storage.put(f"{gcs.url}/x", b"data")
    monkeypatch.setattr(retrying, "NOTICE_S", 0.01)
    gcs.server.faults({"kind": "status", "status": 503, "times": 3})
    patience = Patience(60, first_pause_s=0.05)
    assert patiently(lambda: storage.get(f"{gcs.url}/x"), gcs.url, patience) == b"data"
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"cannot read `{gcs.url}/x`: HttpError: Service Unavailable")
    assert "Traceback" not in caplog.text
