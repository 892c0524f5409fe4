"""Writing report.html and metrics.jsonl from what is finished."""

import json
import sys

from eval import figures, history
from eval.config import EvalConfig
from eval.finished import Damaged
from eval.history import History
from eval.report.page import page
from imagen import storage

REPORT, LINES = "report.html", "metrics.jsonl"
ROUNDS = 10
"""Times that evaluations may finish while the report is written."""


def write(config: EvalConfig) -> None:
    """Write both files into the folder of evaluations; does nothing when none has finished.

    Safe while others do the same: who writes last looks again whether it has seen everything, and
    the page follows from the files alone. Evaluations with damage are left out, which is said in
    the page and on stderr.
    """
    found = history.load(config)
    for _ in range(ROUNDS):
        found, html = _drawn(found)
        if html:
            storage.put(storage.join(config.evals, LINES), lines(found))
            storage.put(storage.join(config.evals, REPORT), html.encode())
        if _seen(found) == {one.key for one in history.evaluations(config.evals)}:
            break
        found = history.load(config)
    for one in found.damaged:
        print(f"eval: the report leaves out a damaged evaluation: {one}", file=sys.stderr)


def _drawn(found: History) -> tuple[History, str]:
    """Return the page, "" for no evaluations, and what it is of: without those with damage."""
    while found.evaluations:
        try:
            return found, page(found)
        except Damaged as err:
            found = found.without(err)
    return found, ""


def _seen(found: History) -> set[tuple[str, str]]:
    return {one.key for one in (*found.evaluations, *found.damaged)}


def lines(found: History) -> bytes:
    """Return metrics.jsonl: a line for each finished evaluation, by images seen."""
    told = [
        {
            "evaluation": one.name,
            "images_seen": one.images_seen,
            "figures": figures.jsonable(figures.figures(one.metrics)),
        }
        for one in sorted(found.evaluations, key=lambda e: e.at)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told).encode()
