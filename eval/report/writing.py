"""Writing report.html and metrics.jsonl from what is finished."""

import json

from eval import figures, history
from eval.config import EvalConfig
from eval.history import History
from eval.report.page import page
from imagen import storage

REPORT, LINES = "report.html", "metrics.jsonl"
ROUNDS = 10
"""Times that evaluations may finish while the report is written."""


def write(config: EvalConfig) -> None:
    """Write both files into the folder of evaluations; does nothing when none has finished.

    Safe while others do the same: who writes last looks again whether it has seen everything, and
    the page follows from the files alone.
    """
    for _ in range(ROUNDS):
        found = history.load(config)
        if not found.evaluations:
            return
        storage.put(storage.join(config.evals, LINES), lines(found))
        storage.put(storage.join(config.evals, REPORT), page(found).encode())
        if _names(found) == _names(history.load(config)):
            return


def _names(found: History) -> list[tuple[str, str]]:
    return [(one.name, one.body["fingerprint"]) for one in found.evaluations]


def lines(found: History) -> bytes:
    """Return metrics.jsonl: a line for each finished evaluation, by images seen."""
    told = [
        {
            "evaluation": one.name,
            "images_seen": one.images_seen,
            "figures": figures.jsonable(figures.figures(one.metrics)),
        }
        for one in found.evaluations
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told).encode()
