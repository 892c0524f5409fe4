"""Stages as child processes that never outlive the pipeline."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from imagen import storage
from pipeline.stages import Stage
from runtime import cli

INTERRUPT_S = 110.0
"""How long an interrupted stage may take to end by itself, a training after a last checkpoint."""
TAIL_LINES = 15
ALWAYS = {"PYTHONUNBUFFERED": "1"}  # in a file, errors stand after what was printed before them


class Child:
    """A running stage; its output goes to the terminal, or to a file when `log` is given."""

    def __init__(self, stage: Stage, environment: Mapping[str, str], log: str | None) -> None:
        self.stage = stage
        self.log = log
        self.seconds = 0.0
        self._started = time.monotonic()
        with contextlib.ExitStack() as files:
            output = files.enter_context(open(log, "wb")) if log else None
            self.process = subprocess.Popen(
                [sys.executable, *stage.arguments],
                env={**os.environ, **ALWAYS, **environment, cli.PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                process_group=0,  # Ctrl-C reaches the pipeline only, which ends its stages in order
            )

    def poll(self) -> int | None:
        """Return the exit status, None while the stage runs."""
        status = self.process.poll()
        if status is not None and not self.seconds:
            self.seconds = time.monotonic() - self._started
        return status

    def tail(self) -> list[str]:
        """Return the last lines of the output file."""
        if self.log is None:
            return []
        with open(self.log, encoding="utf8", errors="replace") as file:
            return [line.rstrip() for line in deque(file, TAIL_LINES)]


def stop(running: Sequence[Child]) -> None:
    """Interrupt what still runs and, after `INTERRUPT_S`, kill it."""
    for child in running:
        if child.poll() is None:
            child.process.send_signal(signal.SIGINT)  # a stage ends in order on it
    deadline = time.monotonic() + INTERRUPT_S
    for child in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        child.process.kill()
        child.process.wait()


@contextlib.contextmanager
def start(
    stages: Sequence[Stage], environment: Mapping[str, str], logs: str | None
) -> Iterator[list[Child]]:
    """Run stages side by side; whatever ends the block ends them too.

    `logs`: folder or URL for one output file a stage; None: all write to the terminal.
    """
    with contextlib.ExitStack() as stack:
        folder = _log_folder(logs, stack) if logs else None
        children: list[Child] = []
        stack.callback(stop, children)
        for stage in stages:
            path = os.path.join(folder, log_name(stage)) if folder else None
            children.append(Child(stage, environment, path))
        yield children
        if logs and folder and not storage.is_local(logs):
            for child in children:
                path = os.path.join(folder, log_name(child.stage))
                storage.put(storage.join(logs, log_name(child.stage)), storage.get(path))


def log_name(stage: Stage) -> str:
    """Return the name of a stage's output file."""
    return stage.name.replace(" ", "-") + ".log"


def _log_folder(logs: str, stack: contextlib.ExitStack) -> str:
    """Return a local folder to write to; of a remote one, a stand-in."""
    if not storage.is_local(logs):
        return stack.enter_context(tempfile.TemporaryDirectory())
    os.makedirs(storage.local(logs), exist_ok=True)
    return storage.local(logs)
