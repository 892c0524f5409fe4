"""Is it drawing or copying? Distances of samples to their nearest training images.

Held-out real images are the yardstick: they are as near to the training images as honest new
pictures of the same world are. Samples that are much nearer have been memorised.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.measures import intervals

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest training image of each row: root mean square pixel difference, and its index."""

    distance: np.ndarray
    index: np.ndarray


class Neighbours:
    """Training images (m, d), values in [0, 1], made ready to be looked among."""

    def __init__(self, training: np.ndarray) -> None:
        assert len(training), "there are no training images to compare with"
        self._rows = training
        self._squares = np.einsum("ij,ij->i", training, training, dtype=np.float64)

    def __call__(self, rows: np.ndarray) -> Nearest:
        """Return the nearest training image of each of `rows` (n, d)."""
        index = np.empty(len(rows), np.int64)
        distance = np.empty(len(rows))
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            # |a - b|^2 without the |a|^2 that all columns of a row share
            index[part] = (self._squares - 2.0 * (rows[part] @ self._rows.T)).argmin(axis=1)
            difference = rows[part].astype(np.float64) - self._rows[index[part]]
            distance[part] = np.sqrt((difference**2).mean(axis=1))
        return Nearest(distance, index)


def nearest(rows: np.ndarray, training: np.ndarray) -> Nearest:
    """Return the nearest of `training` (m, d) for each of `rows` (n, d), values in [0, 1]."""
    return Neighbours(training)(rows)


def compare(samples: Nearest, heldout: Nearest) -> dict[str, Any]:
    """Return the memorisation figures of metrics.json.

    `ratio_of_medians` near or above 1 is honest, far below 1 is copying; `nearer_than_heldout` is
    about 0.5 for new images of the same world and 1 for copies.
    """
    body: dict[str, Any] = {
        "measure": "root mean square pixel difference at 32x32, values in [0, 1]",
        "samples": _summary(samples.distance),
        "heldout": _summary(heldout.distance),
        "distinct_nearest": len(set(samples.index.tolist())),
    }
    if len(heldout.distance) and len(samples.distance):
        body["ratio_of_medians"] = round(
            float(np.median(samples.distance) / max(1e-9, np.median(heldout.distance))), 6
        )
        body["nearer_than_heldout"] = nearer(samples.distance, heldout.distance)
    return body


def nearer(samples: np.ndarray, heldout: np.ndarray) -> dict[str, Any]:
    """Return the probability that a sample is nearer than a held-out image, ties counted half.

    The area under the ROC curve (Mann & Whitney 1947). Its 95 % interval has an error of both
    sides, because the held-out images are a sample too; it is a score interval, which is not empty
    where all samples are nearer (Newcombe 2006, Stat. Med. 25:559, method 5).
    """
    value = _nearer(samples, heldout)
    low, high = _span(value, len(samples), len(heldout))
    return {
        "value": round(value, 6),
        "interval": [round(float(low), 6), round(float(high), 6)],
        "n": len(samples),
    }


def _nearer(samples: np.ndarray, heldout: np.ndarray) -> float:
    ordered = np.sort(heldout)
    below = np.searchsorted(ordered, samples, "left")
    upto = np.searchsorted(ordered, samples, "right")
    return float(1 - (below + upto).mean() / (2 * len(ordered)))


def _span(value: float, m: int, n: int) -> tuple[float, float]:
    """Return the probabilities from which `value` is as far as 1.96 of their own errors."""

    def possible(p: float) -> bool:
        extra = ((m + n) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        return (value - p) ** 2 <= intervals.Z95**2 * p * (1 - p) * (1 + extra) / (m * n)

    ends = []
    for outside in (0.0, 1.0):
        inside = value
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if possible(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def _summary(distances: np.ndarray) -> dict[str, Any]:
    if not len(distances):
        return {"n": 0}
    low, median, high = np.percentile(distances, [5, 50, 95])
    return {
        "n": len(distances),
        "least": round(float(distances.min()), 6),
        "p05": round(float(low), 6),
        "median": round(float(median), 6),
        "p95": round(float(high), 6),
    }
