"""Progress for people: drawn on stderr when that is a terminal, silent otherwise."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from imagen import storage
from imagen.errors import StorageError
from runtime import log

POLL_S = 0.5
WAITING = 0.05
"""Share of the time that a training waits for data from which on people are told."""


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: float = 1, note: str | None = None) -> None:
        """Count `count` more as done; `note` replaces the text at the end of the line."""
        self._progress.update(self._task, advance=count)
        self._note(note)

    def move_to(self, completed: float, note: str | None = None) -> None:
        """Set how much is done, for work that reports a total of its own."""
        self._progress.update(self._task, completed=completed)
        self._note(note)

    def _note(self, note: str | None) -> None:
        if note is not None:
            self._progress.update(self._task, note=note)


def _display(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),  # with all that a training tells, 80 characters are enough
        MofNCompleteColumn(),
        *columns,
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def bar(description: str, total: float | None, unit: str = "") -> Iterator[Bar]:
    """Show one progress bar while the block runs; `total` None: the end is not known."""
    left = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    with _display(TextColumn(unit), left) as progress:
        yield Bar(progress, progress.add_task(description, total=total, note=""))


def follow(
    paths: Mapping[str, str], totals: Mapping[str, int], finished: Callable[[], bool]
) -> None:
    """Show the training of several members side by side until `finished()`.

    `paths`: member -> its log.jsonl, which may not exist yet; `totals`: member -> images to see.
    Events with `images_seen` move the bar; their loss, speed and the time left are shown behind it.
    A store that does not answer is asked again later. Without a terminal nobody looks at all.
    """
    with _display() as progress:
        bars = {
            member: Bar(progress, progress.add_task(f"train {member}", total=total, note=""))
            for member, total in totals.items()
        }
        logs = {member: log.Follower(paths[member]) for member in totals}
        pause_s = {m: 0 if storage.is_local(paths[m]) else log.REMOTE_EVERY_S for m in totals}
        due = dict.fromkeys(totals, 0.0)
        while True:
            ended, now = finished(), time.monotonic()  # before the last look, which misses nothing
            for member, shown in bars.items():
                if progress.disable or not (ended or now >= due[member]):
                    continue
                due[member] = now + pause_s[member]
                with contextlib.suppress(StorageError):
                    _show(shown, logs[member].new(), totals[member])
            if ended:
                return
            time.sleep(POLL_S)


def _show(shown: Bar, events: Sequence[Mapping[str, Any]], total: int) -> None:
    for event in events:
        if "images_seen" in event:
            shown.move_to(event["images_seen"], describe(event, total) if "loss" in event else None)


def describe(event: Mapping[str, Any], total: int) -> str:
    """Return `loss 0.1234  456 images/s  0:07:12 left` of a training event, with what it has.

    Of more than one worker their number is told, and waiting for data where it costs something.
    """
    parts = []
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if event.get("images_per_s"):
        left_s = max(0, total - event["images_seen"]) / event["images_per_s"]
        parts.append(f"{event['images_per_s']:,.0f} images/s")
        parts.append(f"{timedelta(seconds=round(left_s))} left")
    if event.get("world_size", 1) > 1:
        parts.append(f"{event['world_size']} workers")
    if event.get("data_wait", 0) > WAITING:
        parts.append(f"{event['data_wait']:.0%} waiting for data")
    return "  ".join(parts)
