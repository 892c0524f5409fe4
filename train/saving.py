"""Saving while training goes on: one task at a time, in a thread of its own on each rank."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from imagen import checkpoint, sharded
from imagen.checkpoint import Contents
from imagen.errors import ImagenError
from train import retention
from train.job import Job
from train.loop import World

TIMEOUT = timedelta(hours=4)
"""How long ranks wait for each other here: longer than one of them insists on all of its files."""
LEAVING_S = 30.0
"""How long a rank that failed lets a checkpoint that is on its way come to its end."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is complete."""

    images_seen: int
    reason: str
    """interval, end, or what a notice says."""
    seconds: float
    """From the step to the manifest."""
    waited_s: float
    """How much of it training stood still."""


class Saver:
    """Reads checkpoints, and writes them in the background, at most one at a time.

    Ranks talk about it in a group of their own, on CPUs, so that training never waits for them.
    Where one waits, all do, and in that group: rank 0 has more to write, and a rank that went on
    would give it up in the next step, for the groups of training have less patience.
    """

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world = job, world
        self.group: Any = None
        if world.size > 1:
            self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.newest = -1
        """Images seen of the newest checkpoint that was begun or read."""
        self.logs: list[Callable[[], None]] = []
        """What publishes this rank's logs: a checkpoint is there when all that led to it is."""
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved: list[Saved] = []
        self._earlier = checkpoint.saved(job.checkpoints) if world.rank == 0 else []

    def read(self, state: dict[str, torch.Tensor], contents: Contents) -> None:
        """Fill `state` from a checkpoint. Raises DamagedError on all ranks when one fails."""
        sharded.read_into(state, contents, self.group)
        self.newest = contents.images_seen

    def save(
        self,
        images_seen: int,
        state: Mapping[str, torch.Tensor],
        meta: Mapping[str, Any],
        reason: str,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Begin to write a checkpoint of what `state` is now; all ranks, each with its share.

        `first` is done before, and the logs are published. Returns when the checkpoint before is
        complete, and `state` copied.
        """
        began = time.perf_counter()
        self.wait()
        staged = sharded.Staged(state)
        waited_s = time.perf_counter() - began
        self.newest = images_seen

        def before() -> None:
            for publish in (*self.logs, first):
                if publish is not None:
                    publish()

        def task() -> None:
            # what a start finds it has fallen back from; what comes later is another start's
            again, folder = images_seen in self._earlier, self.job.checkpoints
            sharded.write(folder, images_seen, staged, meta, self.group, before, replace=again)
            seconds = time.perf_counter() - began
            self._saved.append(Saved(images_seen, reason, seconds, waited_s))
            if self.world.rank == 0:
                self._tidy(images_seen)

        self._start(task)

    def _tidy(self, images_seen: int) -> None:
        retention.checkpoints(self.job, images_seen, self._earlier)
        checkpoint.sweep(self.job.checkpoints, images_seen)

    def do(self, task: Callable[[], None] | None) -> None:
        """Begin something else that is to be written; all ranks, None: nothing on this one."""
        self.wait()
        if task is not None:
            self._start(task)

    def _start(self, task: Callable[[], None]) -> None:
        def run() -> None:
            try:
                task()
            except BaseException as err:
                self._failure = err

        self._thread = threading.Thread(target=run, name="saving", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for what is on its way on any rank; all ranks. Raises on all what one has raised."""
        if self._thread is not None:
            self._thread.join()
        failure, self._failure = self._failure, None
        if self.group is not None:
            failure = self._first(failure)
        if failure is not None:
            raise failure

    def _first(self, failure: BaseException | None) -> BaseException | None:
        """Return this rank's failure, or else another one's; a collective."""
        told = None
        if failure is not None:
            own = isinstance(failure, ImagenError)
            told = failure if own else RuntimeError(f"rank {self.world.rank} failed: {failure!r}")
        failures: list[BaseException | None] = [None] * self.world.size
        dist.all_gather_object(failures, told, group=self.group)
        return failure or next((err for err in failures if err is not None), None)

    def finished(self) -> list[Saved]:
        """Return the checkpoints that came to their end since the last call, and go on.

        Raises what a task has raised, StorageError as a rule.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        saved, self._saved = self._saved, []
        return saved

    def close(self) -> None:
        """Leave, however training ended; the end of a whole run has waited before."""
        if self._thread is not None:
            self._thread.join(LEAVING_S)
