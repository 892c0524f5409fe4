"""Shares with their uncertainty: accuracies of a judge, and what the text is worth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.measures.intervals import Z95, figure


def wilson(hits: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the interval of a share by inverting the score test (Wilson 1927): never empty,
    inside [0, 1], honest for few trials and for shares near 0 or 1.
    """
    assert 0 <= hits <= n, f"{hits} hits of {n}"
    if n == 0:
        return 0.0, 1.0
    p, zz = hits / n, z * z
    centre = (hits + zz / 2) / (n + zz)
    half = z * math.sqrt(n) / (n + zz) * math.sqrt(p * (1 - p) + zz / (4 * n))
    # the ends are exact where all or none hit; rounding would leave them an ulp off
    low = 0.0 if hits == 0 else centre - half
    return low, 1.0 if hits == n else centre + half


def share(hits: int, n: int) -> dict[str, Any]:
    """Return a share with its 95 % interval, as it stands in metrics.json."""
    low, high = wilson(hits, n)
    value = round(hits / n, 6) if n else None
    return {"value": value, "interval": [round(low, 6), round(high, 6)], "hits": hits, "n": n}


def accuracy(wanted: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return the share of images whose verdict is the digit that was asked for.

    `seen` is -1 where the judge's gate was not passed, which counts as wrong.
    """
    return share(int((wanted == seen).sum()), len(wanted))


def per_digit(wanted: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return the accuracy of each digit that was asked for, and what was seen instead."""
    table = {}
    for digit in sorted(set(wanted.tolist())):
        mine = seen[wanted == digit]
        instead = {
            "none" if other < 0 else str(other): int((mine == other).sum())
            for other in sorted(set(mine.tolist()))
            if other != digit
        }
        table[str(digit)] = accuracy(np.full(len(mine), digit), mine) | {"instead": instead}
    return table


def per_phrasing(names: Sequence[str], wanted: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return the accuracy of each phrasing."""
    groups = np.asarray(names)
    return {
        str(name): accuracy(wanted[groups == name], seen[groups == name])
        for name in sorted(set(names))
    }


def text_use(wanted: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return what the text is worth: accuracy with the right prompt against chance.

    `chance`: accuracy that these same images would have if prompts were dealt out at random, the
    mean of the share asked for of what each shows; it stands out from 1/10 when the model likes
    digits that are asked for more often. What is asked for is no accident, so only what is seen has
    an error: `gap` and `share_of_possible_gain` have that of the accuracy, chance taken as it is.
    """
    n = len(wanted)
    if not n:
        return {"gate_passed": share(0, 0)}
    hits = int((wanted == seen).sum())
    chance = _chance(wanted, seen)
    expected, (low, high) = chance["value"], wilson(hits, n)
    gap = figure(hits / n - expected, (low - expected, high - expected), n)
    left = 1 - expected
    gain = figure(None, None, n)
    if left > 1e-9:
        value, *ends = [(end - expected) / left for end in (hits / n, low, high)]
        gain = figure(value, ends, n)
    return {
        "right_prompt": share(hits, n),
        "chance": chance,
        "gap": gap,
        "share_of_possible_gain": gain,
        "gate_passed": share(int((seen >= 0).sum()), n),
    }


def _chance(wanted: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return the mean of the shares asked for of the digits seen.

    The interval takes each for a hit of the size of the largest share, or none: exactly that of the
    images in which a digit is seen where all are asked for alike, and else a little too wide.
    """
    n = len(wanted)
    asked = np.bincount(wanted, minlength=10) / n
    largest = float(asked.max())
    hits = min(float(n), float((asked[seen[seen >= 0]] / largest).sum()))
    low, high = wilson(hits, n)
    return figure(largest * hits / n, (largest * low, largest * high), n)
