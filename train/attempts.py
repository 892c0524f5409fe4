"""When to stop retrying: starts and failures of a launch, kept in the run directory.

Ray restarts failed workers without looking at why they failed. So each start asks here first, and
all ranks then either go on or return together. A launch is given up

- at once after an error of the user's (ImagenError): it would come again;
- after `LIMIT_BUGS` starts from the same checkpoint that ended in a Python error;
- after `LIMIT_DEATHS` starts from the same checkpoint that ended before they told any progress
  (killed, out of memory, or a lost connection to a worker that was).

A start that told progress is no death, for whatever reason it ended: workers also start anew when
machines come. A new checkpoint sets both counts back. So machines may come and go for as long as
there is progress; Ray's own limit of failures is the only other one.
"""

import json
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from imagen import storage
from imagen.errors import ImagenError, StorageError

LIMIT_BUGS = 3
LIMIT_DEATHS = 10
ATTEMPTS = "attempts"
_RESERVATION = "reservation"

_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "socket timeout")

Kind = Literal["user", "bug", "peer"]


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
        names = [name for name in storage.listdir(self.folder) if name.endswith(f".{kind}.json")]
        return [json.loads(storage.get(storage.join(self.folder, name))) for name in names]

    def _put(self, name: str, record: dict[str, Any]) -> None:
        storage.put(storage.join(self.folder, name), json.dumps(record).encode())

    def reserve(self, name: str) -> list[str]:
        """Record under which name Ray keeps machines for us; return earlier names of this run."""
        root = storage.join(self.run_dir, ATTEMPTS)
        paths = [storage.join(root, launch, _RESERVATION) for launch in storage.listdir(root)]
        earlier = [storage.get(path).decode() for path in paths if storage.exists(path)]
        storage.put(storage.join(self.folder, _RESERVATION), name.encode())
        return earlier

    def start(self, images_seen: int) -> int:
        """Record a start from `images_seen`; return its number. Only rank 0 calls this."""
        number = len(self._records("start"))
        self._put(f"{number:05d}.start.json", {"start": number, "images_seen": images_seen})
        return number

    def alive(self, number: int) -> None:
        """Record that start `number` has told progress. Only rank 0 calls this."""
        self._put(f"{number:05d}.alive.json", {"start": number})

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
            images_seen = starts[-1]["images_seen"] if starts else 0
        for failure in failures:
            if failure["kind"] == "user":
                return ImagenError(failure["message"], failure["hint"])
        bugs = [f for f in failures if f["kind"] == "bug" and f["images_seen"] == images_seen]
        if len({bug["start"] for bug in bugs}) >= LIMIT_BUGS:  # many ranks may tell of one bug
            return WorkerFailed(bugs[-1]["traceback"])
        alive = {record["start"] for record in self._records("alive")}
        deaths = {s["start"] for s in starts if s["images_seen"] == images_seen} - alive
        if len(deaths) >= LIMIT_DEATHS:
            return ImagenError(
                f"workers died {len(deaths)} times at {images_seen} images before any progress, "
                f"without an error of their own (`{self.folder}`)",
                "too little memory is the usual reason: lower `microbatch`; "
                "if machines were taken away, run the same command again",
            )
        return None


def kind_of(err: Exception) -> Kind:
    """Tell an error that will come again from one that a lost worker or network caused."""
    import torch

    if isinstance(err, ImagenError) and not isinstance(err, StorageError):
        return "user"
    text = str(err).lower()
    lost = isinstance(err, torch.distributed.DistError) or any(word in text for word in _PEER)
    return "peer" if lost else "bug"
