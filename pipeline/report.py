"""What the pipeline says at its end: stage times, accuracy, where the results are, what next."""

import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from imagen import storage
from pipeline.run import Outcome
from pipeline.stages import Stage
from runtime.terminal import show

EVAL = "eval"
"""Name of the stage whose results are shown."""
METRICS, PREVIEW = "metrics.json", "preview.png"
SHOWN = ("grid.png", "report.html")
"""Files among eval's outputs that a person wants to open."""


def summary(stages: Sequence[Stage], outcome: Outcome, out: str) -> None:
    """Print what a run of the whole line came to."""
    console = Console(highlight=False, soft_wrap=True)
    if outcome.seconds:
        console.print(times(stages, outcome))
    evaluated = [stage for stage in stages if stage.name == "eval"]  # not when it was left out
    outputs = [path for stage in evaluated for path in stage.state().outputs]
    if console.is_terminal:
        picture(console, outputs)
    for line in results(outputs):
        console.print(line, markup=False)
    cascade = storage.join(out, "cascade")
    console.print(f'next: imagen sample "seven" --cascade {cascade} --out seven.png', markup=False)


def picture(console: Console, outputs: Sequence[str]) -> None:
    """Show the preview of the evaluation in the terminal."""
    for path in outputs:
        if storage.name(path) == PREVIEW:
            console.print(show(Image.open(io.BytesIO(storage.get(path))), console.width))


def times(stages: Sequence[Stage], outcome: Outcome) -> Table:
    """Return the table of what each stage took."""
    table = Table("stage", "time")
    for stage in stages:
        seconds = outcome.seconds.get(stage.name)
        table.add_row(stage.name, "done before" if seconds is None else clock(seconds))
    return table


def clock(seconds: float) -> str:
    """Return `75.2` as `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def results(outputs: Sequence[str]) -> list[str]:
    """Return a line for the accuracy, if it was measured, and one for each file to open."""
    lines = []
    for path in outputs:
        if storage.name(path) == METRICS and storage.exists(path):
            lines += accuracy(json.loads(storage.get(path)))
    shown = [path for path in outputs if storage.name(path) in SHOWN]
    return lines + [f"{storage.name(path).partition('.')[0]}: {path}" for path in shown]


def accuracy(metrics: dict[str, Any]) -> list[str]:
    """Return lines that tell the digit accuracy, none when it was not measured."""
    measured = metrics.get("digit_accuracy")
    if not measured:
        return []
    low, high = measured["interval"]
    digits = "  ".join(f"{d} {each['value']:.0%}" for d, each in metrics["per_digit"].items())
    return [
        f"digit accuracy: {measured['value']:.1%} (95 % interval {low:.1%} to {high:.1%})",
        f"per digit: {digits}",
    ]
