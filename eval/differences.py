"""How two evaluations differ, and whether by more than chance.

Where both drew the same prompts with the same seeds and noted a value for each image, the
differences are of pairs: much of what varies from image to image cancels. Otherwise the two
intervals are all there is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.figures import Figure
from eval.history import Evaluation
from eval.measures import intervals
from eval.measures.shares import wilson

LEVEL = 0.05
FEWEST = 5
"""Pairs of which it is said whether chance could make their difference; shares say it of any."""
COLUMNS = {
    "digit_accuracy": "right",
    "text_use.right_prompt": "right",
    "shapes.all_right": "right",
    "shapes.text_use.right_prompt": "right",
    "clip.score": "clip",
}
"""Columns of images.jsonl whose mean a figure is, beside those of the last member."""

NO_MEASURES = {"prompt", "seed", "seen", "heldout"}
"""Columns that say what an image is, not how good."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first."""

    value: float
    interval: tuple[float, float] | None
    """95 %; None where neither side has one."""
    pairs: int | None
    """Pairs of images that it is of; None: it is of two separate numbers."""
    by_chance: bool | None
    """Whether chance could make it; None where that is not known."""
    p: float | None = None
    """Probability of a difference like this one by chance: exact McNemar test, shares only."""


def difference(
    key: str, first: tuple[Evaluation, Figure], second: tuple[Evaluation, Figure]
) -> Difference | None:
    """Return how a figure of two evaluations differs; None where one of them has no value."""
    (a, before), (b, after) = first, second
    if before.value is None or after.value is None:
        return None
    pairs = shared(a, b)
    if pairs:
        column = _column_of(key, a)
        if column is not None and column == _column_of(key, b):
            found = paired(*_values(column, a, b, pairs))
            if found is not None:
                return found
    return apart(before, after)


def shared(a: Evaluation, b: Evaluation) -> list[tuple[int, int]]:
    """Return numbers of images of both with the same prompt and seed, in the order of `a`."""
    there = {(row["prompt"], row["seed"]): i for i, row in enumerate(b.images)}
    keys = [(row["prompt"], row["seed"]) for row in a.images]
    return [(i, there[key]) for i, key in enumerate(keys) if key in there]


def _column_of(key: str, evaluation: Evaluation) -> str | None:
    """Return the column of images.jsonl whose mean a figure is, if there is one."""
    if key in COLUMNS:
        return COLUMNS[key]
    last = evaluation.members[-1]
    of_last = {f"members.{last}": "right", f"fidelity.{last}.consistency": "consistency"}
    return of_last.get(key)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


def columns(a: Evaluation, b: Evaluation) -> list[str]:
    """Return the columns of numbers that both have for each image."""
    if not a.images or not b.images:
        return []
    both = [name for name in a.images[0] if name in b.images[0] and name not in NO_MEASURES]
    return [n for n in both if any(_number(row.get(n)) is not None for row in a.images)]


def of_column(
    name: str, a: Evaluation, b: Evaluation, pairs: Sequence[tuple[int, int]]
) -> Difference | None:
    """Return the paired difference of a column's mean; None where no pair has both values."""
    return paired(*_values(name, a, b, pairs))


def _values(
    name: str, a: Evaluation, b: Evaluation, pairs: Sequence[tuple[int, int]]
) -> tuple[Floats, Floats]:
    rows = [(_number(a.images[i].get(name)), _number(b.images[j].get(name))) for i, j in pairs]
    whole = [(x, y) for x, y in rows if x is not None and y is not None]
    return np.array([x for x, _ in whole], np.float64), np.array([y for _, y in whole], np.float64)


def paired(first: Floats, second: Floats) -> Difference | None:
    """Return the mean difference of pairs with its interval; None for no pairs.

    Shares (values 0 and 1) are judged by the exact McNemar test, which needs no large numbers.
    """
    if not len(first):
        return None
    differences, n = second - first, len(first)
    if set(np.unique([first, second])) <= {0.0, 1.0}:
        lost, won = int((differences < 0).sum()), int((differences > 0).sum())
        p = mcnemar(lost, won)
        return Difference((won - lost) / n, _of_shares(lost, won, n), n, p >= LEVEL, p)
    value, interval, by_chance = float(differences.mean()), _of_values(differences), None
    if interval is not None and n >= FEWEST:
        by_chance = interval[0] <= 0 <= interval[1]
    return Difference(value, interval, n, by_chance)


def _of_values(differences: Floats) -> tuple[float, float] | None:
    """Return Student's t interval of the mean; None for a single value."""
    from scipy import special

    n = len(differences)
    if n < 2:
        return None
    half = special.stdtrit(n - 1, 1 - LEVEL / 2) * differences.std(ddof=1) / n**0.5
    return float(differences.mean() - half), float(differences.mean() + half)


def _of_shares(lost: int, won: int, n: int) -> tuple[float, float]:
    """Return the interval of (won - lost) / n: zero is outside it just where McNemar's p is < 0.05.

    Of the pairs that changed, won is a share w with the exact interval (Clopper & Pearson 1934).
    The difference is (2w - 1) times the share of pairs that changed, which has an interval by
    Wilson; the errors of both are added by squares.
    """
    if not lost + won:  # none of n: it may still happen to this share of pairs
        high = 1 - (LEVEL / 2) ** (1 / n)
        return -high, high
    return _least(lost, won, n), -_least(won, lost, n)


def _least(lost: int, won: int, n: int) -> float:
    """Return the lower end of that interval."""
    from scipy import special

    changed = lost + won
    lean, share = (won - lost) / changed, changed / n
    low = 2 * float(special.betaincinv(won, lost + 1, LEVEL / 2)) - 1 if won else -1.0
    least, most = wilson(changed, n)
    down = math.hypot(share * (lean - low), lean * (share - (least if lean > 0 else most)))
    # what leans beyond doubt leans on, by the least of both at least
    return max(lean * share - down, low * least if low > 0 else -1.0)


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p of McNemar's exact test: pairs that changed one way and the other."""
    n, least = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    logs = [_log_choose(n, k) - n * math.log(2) for k in range(least + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def apart(first: Figure, second: Figure) -> Difference | None:
    """Return the difference of two separate numbers with the interval that theirs give."""
    if first.value is None or second.value is None:
        return None
    value = second.value - first.value
    if first.interval is None or second.interval is None:
        return Difference(value, None, None, None)
    low, high = intervals.apart(first.value, first.interval, second.value, second.interval)
    return Difference(value, (low, high), None, low <= 0 <= high)
