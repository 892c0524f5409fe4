"""When to stop retrying: starts and failures of a launch, kept in the run directory.

Ray restarts failed workers without looking at why they failed. So each start asks here first, and
all ranks then either go on or return together. A launch is given up

- at once after an error of the user's (ImagenError): it would come again;
- after `LIMIT_BUGS` starts from the same checkpoint that ended in a Python error, or in one of a
  disk or store that may pass;
- after `LIMIT_DEATHS` starts from the same checkpoint that ended before they told any progress
  (killed, out of memory, or a lost connection to a worker that was);
- after `LIMIT_LOST` starts from the same checkpoint that told progress, and lost it again.

A start that told progress is no death, for whatever reason it ended: machines may go at any time.
A new checkpoint sets all counts back, and before machines are added there is one. So machines may
come and go for as long as there is progress. What fails before a start is recorded here is counted
by train/ray_internals.py.
"""

import json
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from imagen import storage
from imagen.errors import ImagenError, StorageError
from imagen.retrying import Patience, is_final, patiently

LIMIT_BUGS = 3
LIMIT_DEATHS = 10
LIMIT_LOST = 30
ATTEMPTS = "attempts"
_RESERVATION = "reservation"

_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "socket timeout")

Kind = Literal["user", "storage", "bug", "peer"]

PATIENCE = Patience(deadline_s=120.0)
"""Other ranks wait meanwhile, in collectives of up to 300 s."""


class WorkerFailed(RuntimeError):
    """A worker failed in a way that is a bug; the message is its traceback."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of `python -m train`, which Ray may start several times."""

    run_dir: str
    name: str
    """Unique, and sorted by time."""

    @property
    def folder(self) -> str:
        """Where its starts and failures are."""
        return storage.join(self.run_dir, ATTEMPTS, self.name)

    def _records(self, kind: str) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            names = [n for n in storage.listdir(self.folder) if n.endswith(f".{kind}.json")]
            return [json.loads(storage.get(storage.join(self.folder, name))) for name in names]

        return patiently(read, self.folder, PATIENCE)

    def _put(self, name: str, record: dict[str, Any]) -> None:
        path, data = storage.join(self.folder, name), json.dumps(record).encode()
        patiently(lambda: storage.put(path, data), path, PATIENCE)

    def reserve(self, name: str) -> list[str]:
        """Record under which name Ray keeps machines for us; return earlier names of this run."""
        return patiently(lambda: self._reserve(name), self.folder, PATIENCE)

    def _reserve(self, name: str) -> list[str]:
        root = storage.join(self.run_dir, ATTEMPTS)
        others = [launch for launch in storage.listdir(root) if launch != self.name]
        paths = [storage.join(root, launch, _RESERVATION) for launch in others]
        earlier = [storage.get(path).decode() for path in paths if storage.exists(path)]
        storage.put(storage.join(self.folder, _RESERVATION), name.encode())
        return earlier

    def start(self, images_seen: int) -> int:
        """Record a start from `images_seen`; return its number. Only rank 0 calls this."""
        number = len(self._records("start"))
        self._put(f"{number:05d}.start.json", {"start": number, "images_seen": images_seen})
        return number

    def fell_back(self, number: int, images_seen: int) -> None:
        """Record that start `number` goes on from an older checkpoint, of `images_seen`."""
        self._put(f"{number:05d}.start.json", {"start": number, "images_seen": images_seen})

    def alive(self, number: int) -> None:
        """Record that start `number` has told progress. Only rank 0 calls this."""
        self._put(f"{number:05d}.alive.json", {"start": number})

    def count_starts(self) -> int:
        """Return how many starts the run has had, in all of its launches."""
        root = storage.join(self.run_dir, ATTEMPTS)
        folders = [storage.join(root, launch) for launch in storage.listdir(root)]
        return sum(n.endswith(".start.json") for f in folders for n in storage.listdir(f))

    def count_alive(self) -> int:
        """Return how many starts have told progress."""
        return len(self._records("alive"))

    def fail(self, number: int, rank: int, images_seen: int, err: Exception) -> None:
        """Record that a rank failed in start `number`."""
        record = {
            "kind": kind_of(err),
            "start": number,
            "images_seen": images_seen,
            "message": err.message if isinstance(err, ImagenError) else str(err),
            "hint": err.hint if isinstance(err, ImagenError) else None,
            "traceback": "".join(traceback.format_exception(err)),
        }
        self._put(f"{number:05d}-{rank:05d}.failure.json", record)

    def given_up(self, images_seen: int | None = None) -> Exception | None:
        """Return why a start from `images_seen` is not worth another try, or None.

        None asks about another start from where the last one was: which checkpoint can be read is
        known to the workers only.
        """
        starts, failures = self._records("start"), self._records("failure")
        if images_seen is None:
            images_seen = int(starts[-1]["images_seen"]) if starts else 0
        for failure in failures:
            if failure["kind"] == "user":
                return ImagenError(failure["message"], failure["hint"])
        here = [f for f in failures if f["images_seen"] == images_seen]
        bugs = [f for f in here if f["kind"] in ("bug", "storage")]
        if len({bug["start"] for bug in bugs}) >= LIMIT_BUGS:  # many ranks may tell of one bug
            last = bugs[-1]
            if last["kind"] == "storage":
                return StorageError(last["message"], last["hint"])
            return WorkerFailed(last["traceback"])
        numbers = {s["start"] for s in starts if s["images_seen"] == images_seen}
        return self._lost(numbers, images_seen)

    def _lost(self, starts: set[int], images_seen: int) -> ImagenError | None:
        """Return that too many `starts` from one checkpoint ended without a word, or None."""
        alive = {record["start"] for record in self._records("alive")}
        deaths = starts - alive
        if len(deaths) >= LIMIT_DEATHS:
            return ImagenError(
                f"workers died {len(deaths)} times at {images_seen} images before any progress, "
                f"without an error of their own (`{self.folder}`)",
                "too little memory is the usual reason: lower `microbatch`; "
                "if machines were taken away, run the same command again",
            )
        if len(starts & alive) >= LIMIT_LOST:
            return ImagenError(
                f"workers started {len(starts)} times at {images_seen} images, trained, and were "
                f"lost before the next checkpoint (`{self.folder}`)",
                "lower `checkpoint_every`, so that less is lost; when it is memory that runs out, "
                "lower `microbatch`",
            )
        return None


def kind_of(err: Exception) -> Kind:
    """Tell an error that will come again from one that a lost worker or network caused."""
    import torch

    if isinstance(err, StorageError):
        return "user" if _is_refused(err) else "storage"
    if isinstance(err, ImagenError):
        return "user"
    text = str(err).lower()
    lost = isinstance(err, torch.distributed.DistError) or any(word in text for word in _PEER)
    return "peer" if lost else "bug"


def _is_refused(err: StorageError) -> bool:
    """Tell whether a disk or store has said no, for good.

    What is missing may be back: another start deletes, a disk is not mounted yet. An error without
    a cause came from another rank: what it was is not known here.
    """
    if err.__cause__ is None or not is_final(err):
        return False
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, FileNotFoundError):
            return False
        cause = cause.__cause__
    return True
