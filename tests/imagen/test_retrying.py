import itertools

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from imagen import checkpoint, sharded, storage
from imagen.errors import StorageError
from imagen.retrying import Patience, is_final, patiently


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"answer {code}")
        self.code = code


class FaultyStore(MemoryFileSystem):
    """A store in memory whose next writes fail as planned."""

    protocol = "faulty"
    store: dict = {}  # noqa: RUF012 - as MemoryFileSystem has them
    pseudo_dirs = [""]  # noqa: RUF012
    plan: list = []  # noqa: RUF012
    written: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        failure = self.plan.pop(0) if self.plan else None
        if failure is not None:
            raise failure
        self.written.append(path)
        super().pipe_file(path, value, mode=mode, **kwargs)


@pytest.fixture
def faulty():
    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    FaultyStore.store.clear()
    FaultyStore.plan.clear()
    FaultyStore.written.clear()
    return FaultyStore


class Clock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def patience(self, deadline_s: float = 100.0) -> Patience:
        return Patience(
            deadline_s, first_pause_s=1, longest_pause_s=8, pause=self.pause, clock=lambda: self.now
        )


def put(path: str, patience: Patience) -> bool:
    return patiently(lambda: storage.put(path, b"x"), path, patience)


@pytest.mark.parametrize(
    "failure", [HttpError(503), HttpError(429), ConnectionResetError("lost"), RuntimeError("new")]
)
def test_what_may_pass_is_tried_again_with_growing_pauses(faulty, failure):
    clock = Clock()
    faulty.plan += [failure] * 5
    assert put("faulty://a/b", clock.patience())
    assert storage.get("faulty://a/b") == b"x"
    assert all(0.5 * p <= s <= p for p, s in zip((1, 2, 4, 8, 8), clock.pauses, strict=True))


@pytest.mark.parametrize("failure", [PermissionError("no"), HttpError(403), HttpError(404)])
def test_what_is_forbidden_or_missing_is_final_at_once(faulty, failure):
    clock = Clock()
    faulty.plan += [failure]
    with pytest.raises(StorageError, match="cannot write `faulty://a/b`"):
        put("faulty://a/b", clock.patience())
    assert clock.pauses == []


def test_the_deadline_ends_it_and_the_error_tells_how_often_and_how_long(faulty):
    clock = Clock()
    faulty.plan += [HttpError(503)] * 1000
    with pytest.raises(StorageError) as err:
        put("faulty://bucket/file", clock.patience(60))
    tries = 1000 - len(faulty.plan)
    assert (
        f"cannot write `faulty://bucket/file`: HttpError: answer 503 (tried {tries} times in"
        in (err.value.message)
    )
    assert 40 < clock.now <= 60


def test_a_try_that_hangs_is_left_behind_at_the_deadline(faulty):
    import threading

    never = threading.Event()
    with pytest.raises(StorageError, match=r"no answer in 0 s \(tried once\)"):
        patiently(never.wait, "faulty://a/b", Patience(deadline_s=0.05))
    never.set()


def test_a_local_disk_gets_one_try(tmp_path):
    tries = itertools.count()

    def fails() -> None:
        next(tries)
        raise StorageError("full")

    with pytest.raises(StorageError, match="full"):
        patiently(fails, str(tmp_path / "file"))
    assert next(tries) == 1


def test_our_own_judgement_is_final():
    assert is_final(StorageError("`x` ends at byte 5, not at 9"))
    assert not is_final(RuntimeError("who knows"))


@pytest.mark.parametrize("at", range(4))
def test_a_checkpoint_survives_failures_of_each_of_its_writes(faulty, at: int):
    """Data, layout and manifest: whichever fails for a while."""
    faulty.plan += [None] * at + [HttpError(503)] * 3
    clock, tensors = Clock(), {"w": torch.arange(5.0), "b": torch.ones(2, 3)}
    sharded.write(
        "faulty://run", 8, sharded.Staged(tensors), {"a": 1}, patience=clock.patience(1000)
    )
    found = checkpoint.load("faulty://run", 8)
    assert found.meta == {"a": 1}
    assert all(torch.equal(found.tensors[n], t) for n, t in tensors.items())
    assert len(clock.pauses) == (3 if at < 3 else 0)
    assert faulty.written[-1].endswith(checkpoint.MANIFEST)


def test_an_upload_that_is_given_up_leaves_the_checkpoint_before(faulty):
    checkpoint.save("faulty://run", 8, {"w": torch.zeros(3)}, {})
    faulty.plan += [None, PermissionError("the token has expired")]
    with pytest.raises(StorageError, match="permission denied"):
        checkpoint.save("faulty://run", 16, {"w": torch.ones(3)}, {})
    assert checkpoint.saved("faulty://run") == [8]
    found = checkpoint.load("faulty://run", 8)
    assert not found.tensors["w"].any()
    checkpoint.save("faulty://run", 24, {"w": torch.ones(3)}, {})
    checkpoint.sweep("faulty://run", 24)
    assert storage.listdir("faulty://run/000000000016") == []
