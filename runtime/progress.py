"""Progress for people: drawn on stderr when that is a terminal, silent otherwise."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from runtime import log

POLL_S = 0.5


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


def _display(unit: str) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def bar(description: str, total: float | None, unit: str = "") -> Iterator[Bar]:
    """Show one progress bar while the block runs; `total` None: the end is not known."""
    with _display(unit) as progress:
        yield Bar(progress, progress.add_task(description, total=total, note=""))


def follow(
    paths: Mapping[str, str], totals: Mapping[str, int], finished: Callable[[], bool]
) -> None:
    """Show the training of several members side by side until `finished()`.

    `paths`: member -> its log.jsonl, which may not exist yet; `totals`: member -> images to see.
    Events with `images_seen` move the bar; their `loss` and `images_per_s` are shown behind it.
    """
    with _display("images") as progress:
        bars = {
            member: Bar(progress, progress.add_task(f"train {member}", total=total, note=""))
            for member, total in totals.items()
        }
        while not finished():
            _refresh(bars, paths)
            time.sleep(POLL_S)
        _refresh(bars, paths)


def _refresh(bars: Mapping[str, Bar], paths: Mapping[str, str]) -> None:
    for member, shown in bars.items():
        steps = [event for event in log.read(paths[member]) if "images_seen" in event]
        if steps:
            shown.move_to(steps[-1]["images_seen"], describe(steps[-1]))


def describe(event: Mapping[str, Any]) -> str:
    """Return `loss 0.123  456 images/s` of a training event, with what it has of the two."""
    parts = []
    if "loss" in event:
        parts.append(f"loss {event['loss']:.4f}")
    if "images_per_s" in event:
        parts.append(f"{event['images_per_s']:,.0f} images/s")
    return "  ".join(parts)
