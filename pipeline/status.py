"""How far each stage is, for people and for programs."""

import dataclasses
import json
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from runtime.state import StageState

COLOURS = {
    "done": "green",
    "running": "cyan",
    "partial": "yellow",
    "stale": "magenta",
    "missing": "red",
}


def table(states: Sequence[StageState]) -> Table:
    """Return the states as a table."""
    shown = Table("stage", "status", "detail")
    for state in states:
        status = Text(state.status, COLOURS[state.status])
        shown.add_row(state.stage, status, Text(state.detail))
    return shown


def as_json(states: Sequence[StageState]) -> str:
    """Return the states as a JSON list of objects."""
    return json.dumps([dataclasses.asdict(state) for state in states], indent=1)
