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

RESAMPLES = 2000
BLOCK = 1_000_000
"""Numbers that a bootstrap draws at once."""
LEVEL = 0.05
MOST_DIFFERENCE = 2e-4
"""Between a figure and the mean of the column that it is taken to be the mean of: rounding."""
COLUMNS = {
    "digit_accuracy": "right",
    "shapes.all_right": "right",
    "clip.score": "clip",
}
"""Columns of images.jsonl whose mean a figure is, where their names differ."""

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
        columns = [_column_of(key, e, f) for e, f in (first, second)]
        if columns[0] is not None and columns[0] == columns[1]:
            found = paired(*_values(columns[0], a, b, pairs))
            if found is not None:
                return found
    return apart(before, after)


def shared(a: Evaluation, b: Evaluation) -> list[tuple[int, int]]:
    """Return numbers of images of both with the same prompt and seed, in the order of `a`."""
    there = {(row["prompt"], row["seed"]): i for i, row in enumerate(b.images)}
    keys = [(row["prompt"], row["seed"]) for row in a.images]
    return [(i, there[key]) for i, key in enumerate(keys) if key in there]


def _column_of(key: str, evaluation: Evaluation, figure: Figure) -> str | None:
    """Return the column of images.jsonl whose mean a figure is, if there is one."""
    if not evaluation.images or figure.value is None:
        return None
    name = COLUMNS.get(key, key.rpartition(".")[2])
    values = [_number(row.get(name)) for row in evaluation.images]
    there = [value for value in values if value is not None]
    if not there or abs(float(np.mean(there)) - figure.value) > MOST_DIFFERENCE:
        return None
    return name


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
    """Return the mean difference of pairs with a bootstrap interval (Efron & Tibshirani 1993).

    Shares (values 0 and 1) are judged by the exact McNemar test, which needs no large numbers.
    None for no pairs.
    """
    if not len(first):
        return None
    differences = second - first
    draw = np.random.RandomState(0)  # frozen streams: the same interval everywhere
    means = _resampled(differences, draw)
    low, high = np.percentile(means, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    p = None
    if set(np.unique([first, second])) <= {0.0, 1.0}:
        p = mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
        if not differences.any():  # resampling cannot see changes that are too rare to be here
            high = 1 - (LEVEL / 2) ** (1 / len(differences))
            low = -high
    by_chance = p >= LEVEL if p is not None else bool(low <= 0 <= high)
    return Difference(
        float(differences.mean()), (float(low), float(high)), len(differences), by_chance, p
    )


def _resampled(values: Floats, draw: np.random.RandomState) -> Floats:
    """Return the means of samples with replacement, from how often each distinct value comes."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 16:  # all shares: far less to draw
        drawn = draw.multinomial(len(values), counts / len(values), RESAMPLES)
        return drawn @ distinct / len(values)
    rows = max(1, BLOCK // len(values))
    blocks = [
        values[draw.randint(0, len(values), (min(rows, RESAMPLES - start), len(values)))].mean(
            axis=1
        )
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(blocks)


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
    """Return the difference of two separate numbers with the interval that theirs give.

    Square-and-add (Newcombe 1998, method 10; Zou & Donner 2008, MOVER): as if independent, which
    is too careful where both have the same prompts.
    """
    if first.value is None or second.value is None:
        return None
    value = second.value - first.value
    if first.interval is None or second.interval is None:
        return Difference(value, None, None, None)
    down = math.hypot(second.value - second.interval[0], first.interval[1] - first.value)
    up = math.hypot(second.interval[1] - second.value, first.value - first.interval[0])
    low, high = value - down, value + up
    return Difference(value, (low, high), None, low <= 0 <= high)
