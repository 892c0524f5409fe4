"""Validation beside the training: a thread of the driver that has Ray tasks look at snapshots.

Training never waits: it writes snapshots, and this finds them, oldest first, one task at a time.
What is missing at the end of the training is waited for; what is missing after that, because it
failed or somebody had no time, is done by the next run of the same command.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any, Self

from imagen import manifest, storage
from imagen.errors import ImagenError
from runtime import log, progress
from runtime.cli import user_error
from train import tasks
from train.job import Inputs, Job
from train.logs import ValidationLog
from train.results import LINES, TRIES, Results
from train.validating import Task

POLL_S = 5.0
BAR_S = 0.5
END_S = 10.0
"""How long an interrupted driver waits for its thread."""
PATIENCE_S = 600.0
"""How long a store that does not answer is tried after the end of the training."""
LOST = 5
"""How often a validation that was lost with its machine is begun again, in one launch."""


class Validator:
    """Validates the snapshots of a run while the block is running, and the last ones after it.

    A failed validation is a warning, never a failed training.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._results: Results | None = None
        self._log: ValidationLog | None = None
        self._found: dict[str, dict[str, Any]] = {}
        self._failed: set[str] = set()
        self._seen: set[str] = set()
        self._lost, self._told, self._left = Counter[str](), set[str](), 0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="validator", daemon=True)

    def __enter__(self) -> Self:
        wanted = self.job.train.validate or self.job.train.grid
        try:
            self._results = open_results(self.job)
        except ImagenError as err:
            _warn(f"snapshots of {self.job.member} are not validated: {_reason(err)}")
        else:
            if wanted and self._results is None:
                why = "the data set has no held-out samples (data.heldout)"
                _warn(f"snapshots of {self.job.member} are not validated: {why}")
        if self._results is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._results is None:
            return
        if kind is not None:  # interrupted, or the training failed: nobody waits for pictures
            self._stop.set()
        self._wake.set()
        try:
            self._wait()
        except KeyboardInterrupt:
            self._stop.set()
            self._thread.join(END_S)
            raise

    def _wait(self) -> None:
        """Wait for the thread, and say how long that may be."""
        if self._stop.is_set():
            self._thread.join(END_S)
            return
        self._tell_left()
        with progress.bar(f"validate {self.job.member}", None, "snapshots") as bar:
            done = len(self._found)
            while self._thread.is_alive():
                self._thread.join(BAR_S)
                bar.advance(len(self._found) - done, f"{self._left} left")
                done = len(self._found)

    def _tell_left(self) -> None:
        """Say what is waited for, also where no terminal shows it, and how not to wait."""
        assert self._results is not None, "who waits has results"
        with contextlib.suppress(ImagenError):  # the thread tells of a store that is gone
            waiting = left(self._results)
            if waiting:
                print(
                    f"train {self.job.member} is done; {waiting} snapshots are still to validate. "
                    "Ctrl-C is safe: the next run of the same command does them",
                    file=sys.stderr,
                )

    def _run(self) -> None:
        assert self._results is not None, "the thread is started with results"
        try:
            self._follow(self._results)
        except Exception as err:
            _warn(f"validation of {self.job.member} has ended: {_reason(err)}")
        finally:
            if self._log is not None:
                self._log.close()
        gone = len(self._seen - set(self._found) - self._failed)
        if gone and not self._stop.is_set():
            _warn(
                f"{gone} snapshots of {self.job.member} were deleted before they were validated: "
                "validation is slower than keep_snapshots allows"
            )

    def _follow(self, results: Results) -> None:
        """Validate what there is and what comes, until nothing is left after the training."""
        caught_up, since = False, time.monotonic()
        while not self._stop.is_set():
            last = self._wake.is_set()  # before the look, which then misses nothing
            try:
                if not caught_up:
                    self._tell(results, published(results))
                caught_up = True
                if not self._look(results, last) and last:
                    return
                since = time.monotonic()  # of the last answer
            except (ImagenError, OSError) as err:  # a store that does not answer for a while
                if last and time.monotonic() - since > PATIENCE_S:
                    raise
                since = since if last else time.monotonic()
                self._wait_for_store(_reason(err))
            if not self._left:
                self._wake.wait(POLL_S)

    def _wait_for_store(self, reason: str) -> None:
        """Wait before another try, also after the training; tell a reason once."""
        if reason not in self._told:
            _warn(f"validation of {self.job.member} waits, and tries again: {reason}")
        self._told.add(reason)
        self._left = 0
        self._stop.wait(POLL_S if self._wake.is_set() else 0)

    def _look(self, results: Results, last: bool) -> int:
        """Validate a snapshot without a result; return how many there were.

        The oldest first, but the best so far before all: until it is judged, no other is named. At
        the end also those that were written again, by a training that lost a worker.
        """
        names = [name for name in results.snapshots() if name not in self._failed]
        names = [
            name
            for name in names
            if name not in self._found or (last and results.of_snapshot(name) is None)
        ]
        todo = [name for name in names if results.body(name) is not None]
        self._left = len(todo)
        self._seen.update(todo)
        if todo:
            best = results.best()
            self._validate(results, best if best in todo else todo[0], last)
        return len(todo)

    def _validate(self, results: Results, name: str, last: bool) -> None:
        """Have a snapshot validated; note what came of it."""
        found = results.of_snapshot(name)  # there is one where telling it has failed
        if found is None and results.failures(name) >= TRIES:
            path = results.path(name, "failed.json")
            _warn(f"snapshot {name} is not validated: {TRIES} tries failed (delete `{path}`)")
            self._failed.add(name)
            return
        if found is None:
            task = Task(self.job.config, self.job.member, results, name)
            try:
                found = tasks.run(task, self._stop, last)
            except Exception as err:
                if not self._stop.is_set():
                    self._note_failure(results, name, err)
                return
        if found is not None:
            self._tell(results, {name: found})

    def _note_failure(self, results: Results, name: str, err: Exception) -> None:
        """Count a failure of the task itself; what took its machine or its files only delays it."""
        if tasks.is_own(err):
            self._failed.add(name)
            tries = results.fail(name, _reason(err))
            again = "the next run tries again" if tries < TRIES else f"given up, {tries} tries"
            _warn(f"validation of snapshot {name} failed ({again}): {_reason(err)}")
            return
        self._lost[name] += 1
        if self._lost[name] < LOST:
            _warn(f"validation of snapshot {name} was lost, and is done again: {_reason(err)}")
            self._stop.wait(POLL_S)
            return
        self._failed.add(name)
        _warn(
            f"validation of snapshot {name} was lost {LOST} times; the next run tries again: "
            f"{_reason(err)}"
        )

    def _tell(self, results: Results, found: dict[str, dict[str, Any]]) -> None:
        """Note results by the names of their snapshots."""
        if not found:
            return
        if self._log is None:
            self._log = ValidationLog(self.job)
        results.note_best((self._found | found).values())
        for result in found.values():
            self._log.tell(result)
        self._found |= found  # last: what could not be told is told when it is met again


def open_results(job: Job) -> Results | None:
    """Return the results of a job's run; None where nothing is asked for, or nothing held out."""
    if not (job.train.validate or job.train.grid):
        return None
    inputs = Inputs.open(job.config, job.member)
    if not any(shard.heldout for shard in inputs.prepared.shards):
        return None
    return Results.of(job.config, job.member, inputs.identity)


def published(results: Results) -> dict[str, dict[str, Any]]:
    """Return the results that there are, by the names of their snapshots."""
    found = {name: results.of_snapshot(name) for name in results.snapshots()}
    return {name: result for name, result in found.items() if result is not None}


def left(results: Results) -> int:
    """Return how many snapshots of a run are still to validate."""
    names = [name for name in results.snapshots() if results.body(name) is not None]
    wanted = [name for name in names if results.failures(name) < TRIES]
    return sum(results.of_snapshot(name) is None for name in wanted)


def is_complete(job: Job) -> bool:
    """Tell whether all snapshots of a run are validated, and the results told."""
    results = open_results(job)
    if results is None:
        return True
    lines = log.read(storage.join(job.run_dir, LINES))
    told = {line.get("result") for line in lines}
    untold = [r for r in published(results).values() if manifest.fingerprint(r) not in told]
    return not untold and not left(results)


def _reason(err: Exception) -> str:
    """Return an error as a person reads it, a bug with its traceback."""
    known = user_error(err)
    if known is not None:
        return f"{known.message} ({known.hint})" if known.hint else known.message
    return "".join(traceback.format_exception(err)).strip()


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
