"""Figures: numbers with the 95 % interval that their sampling error leaves, as in metrics.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def short(value: float | None) -> float | None:
    """Return a number of 7 digits, what is not noise of float32 sums; None for what is none."""
    return float(f"{value:.7g}") if value is not None and np.isfinite(value) else None


def figure(
    value: float | None, interval: Sequence[float] | None = None, n: int = 0, **more: Any
) -> dict[str, Any]:
    """Return a figure of metrics.json: value, interval of 95 % or None, what it is counted over."""
    ends = None if interval is None else [short(float(end)) for end in interval]
    if ends is not None and None in ends:
        ends = None
    return {"value": short(value), "interval": ends, "n": n, **more}


def around(value: float, error: float, low: float = -np.inf) -> tuple[float, float]:
    """Return the interval of a value with a standard error, cut off at the least value possible."""
    return max(low, value - Z95 * error), value + Z95 * error


def mean(values: np.ndarray, **more: Any) -> dict[str, Any]:
    """Return the mean of independent values; no interval for fewer than two."""
    n = len(values)
    value = float(np.mean(values)) if n else None
    if value is None or n < 2:
        return figure(value, None, n, **more)
    error = float(np.std(values, ddof=1)) / n**0.5
    return figure(value, around(value, error), n, **more)


def ratio(upper: np.ndarray, lower: np.ndarray, **more: Any) -> dict[str, Any]:
    """Return mean(upper) / mean(lower) of pairs; the interval by the delta method."""
    n, below = len(upper), float(np.mean(lower)) if len(lower) else 0.0
    if not below:
        return figure(None, None, n, **more)
    value = float(np.mean(upper)) / below
    if n < 2:
        return figure(value, None, n, **more)
    error = float(np.std(upper - value * lower, ddof=1)) / below / n**0.5
    return figure(value, around(value, error), n, **more)


def jackknife_error(left_out: Sequence[float]) -> float:
    """Return the standard error of a statistic from its values with one group left out each.

    Delete-a-group jackknife for g groups of near equal size (Efron & Tibshirani 1993, Eq. 11.5,
    applied to groups).
    """
    values = np.asarray(left_out)
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def apart(
    first: float, of_first: Sequence[float], second: float, of_second: Sequence[float]
) -> tuple[float, float]:
    """Return the interval of second - first from the intervals that both have.

    Square-and-add (Newcombe 1998, method 10; Zou & Donner 2008, MOVER): as if independent, which is
    too careful where they have the same prompts. With those of shares it is honest at 0 and 1.
    """
    down = float(np.hypot(second - of_second[0], of_first[1] - first))
    up = float(np.hypot(of_second[1] - second, first - of_first[0]))
    return second - first - down, second - first + up
