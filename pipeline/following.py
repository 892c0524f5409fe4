"""Follows jobs until they end: what they write, line by line, and what becomes of them."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping

from imagen.errors import ImagenError
from pipeline.jobs import Cluster, JobInfo, Unreachable
from runtime.cli import say

LOOK_S = 1.0
AGAIN_S = 3.0
"""Pause before a cluster that did not answer is asked again."""
REST_S = 10.0
"""How long the last lines of a job that has ended may take."""
SILENCE_S = 120.0
"""After so long without a word a log is asked for anew: a machine that slept, or a router on the
way, may have lost the connection without anybody noticing."""

Write = Callable[[str], None]


class Tail(threading.Thread):
    """Writes what a job writes, whole lines, also across lost connections."""

    def __init__(self, cluster: Cluster, key: str, write: Write) -> None:
        super().__init__(name=f"tail-{key}", daemon=True)
        self._cluster, self._key, self._write = cluster, key, write
        self._seen, self._line = 0, ""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._complete = False
        """Whether all lines are written, and no more may be."""

    def run(self) -> None:
        """Write until the log ends."""
        while True:
            try:
                asyncio.run(self._read())
                self._finish()
                break
            except ImagenError:  # who looks at the job's state tells people
                if self._ended.wait(AGAIN_S):
                    break

    async def _read(self) -> None:
        at, texts = 0, aiter(self._cluster.tail(self._key))
        while True:
            try:
                text = await asyncio.wait_for(anext(texts), SILENCE_S)
            except StopAsyncIteration:
                return
            except TimeoutError as err:
                raise Unreachable(f"no word for {SILENCE_S:.0f} s") from err
            self._take(text, at)
            at += len(text)

    def _take(self, text: str, at: int) -> None:
        """Write what is new of a part of the log that begins at character `at`."""
        with self._lock:
            if self._complete:
                return
            fresh = text[max(0, self._seen - at) :]
            self._seen = max(self._seen, at + len(text))
            *whole, self._line = (self._line + fresh).split("\n")
            for line in whole:
                self._write(line)

    def _finish(self) -> None:
        with self._lock:
            if self._line and not self._complete:
                self._write(self._line)
            self._complete = True

    def rest(self) -> None:
        """Write the last lines of a job that has ended, also when its connection was lost."""
        self._ended.set()
        self.join(REST_S)
        if not self._complete:
            with contextlib.suppress(ImagenError):  # the cluster is gone again
                self._take(self._cluster.log(self._key), 0)
            self._finish()


class Follower:
    """Watches jobs of stages; ask `ended` again and again."""

    def __init__(self, cluster: Cluster, write: Write = say, named: bool = True) -> None:
        self.cluster = cluster
        self.named = named
        """Whether each line begins with its stage."""
        self.running: dict[str, str] = {}
        """Stage -> id of its job."""
        self.seen_s: dict[str, float] = {}
        """Stage -> when its job was last seen at work, by the monotonic clock."""
        self._write = write
        self._tails: dict[str, Tail] = {}
        self._due = 0.0
        self._away = False

    def add(self, stage: str, job: JobInfo) -> None:
        """Watch a job from now on."""
        self.running[stage] = job.id
        start = f"{stage} | " if self.named else ""
        tail = Tail(self.cluster, job.id, lambda line: self._write(start + line))
        self._tails[stage] = tail
        tail.start()

    def ended(self) -> Mapping[str, JobInfo | None]:
        """Return the jobs that ended since the last call, by stage, after their last lines.

        None: the cluster has never heard of the job, for it is another one by now. A cluster that
        does not answer is asked again, for as long as that takes.
        """
        if time.monotonic() < self._due:
            return {}
        self._due = time.monotonic() + LOOK_S
        try:
            states = {stage: self.cluster.info(key) for stage, key in self.running.items()}
        except Unreachable as err:
            self._lost(err)
            return {}
        self._found()
        alive = [stage for stage, job in states.items() if job is not None and job.active]
        self.seen_s |= dict.fromkeys(alive, time.monotonic())
        over = {stage: job for stage, job in states.items() if job is None or not job.active}
        for stage in over:
            del self.running[stage]
            self._tails.pop(stage).rest()
        return over

    def _lost(self, err: Unreachable) -> None:
        if not self._away:
            self._write(f"connection lost: {err.message}; trying again, the jobs go on")
        self._away, self._due = True, time.monotonic() + AGAIN_S

    def _found(self) -> None:
        if self._away:
            self._write(f"connected again to {self.cluster.address}")
        self._away = False
