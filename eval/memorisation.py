"""Is it drawing or copying? Distances of samples to their nearest training images.

Held-out real images are the yardstick: they are as near to the training images as honest new
pictures of the same world are. Samples that are much nearer have been memorised.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics import share

NEAR_PERCENTILE = 1.0
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest training image of each row: root mean square pixel difference, and its index."""

    distance: np.ndarray
    index: np.ndarray


def nearest(rows: np.ndarray, training: np.ndarray) -> Nearest:
    """Return the nearest of `training` (m, d) for each of `rows` (n, d), values in [0, 1]."""
    assert len(training), "there are no training images to compare with"
    squares = (training.astype(np.float64) ** 2).sum(axis=1)
    index = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        # |a - b|^2 without the |a|^2 that all columns of a row share
        index[start : start + _BLOCK] = (squares - 2.0 * (block @ training.T)).argmin(axis=1)
    difference = rows.astype(np.float64) - training[index]
    return Nearest(np.sqrt((difference**2).mean(axis=1)), index)


def compare(samples: Nearest, heldout: Nearest) -> dict[str, Any]:
    """Return the memorisation figures of metrics.json.

    `ratio_of_medians` near or above 1 is honest, far below 1 is copying; `nearer_than_percentile`
    is about one percent for images of the same distribution as the held-out ones.
    """
    body: dict[str, Any] = {
        "measure": "root mean square pixel difference at 32x32, values in [0, 1]",
        "samples": _summary(samples.distance),
        "heldout": _summary(heldout.distance),
        "distinct_nearest": len(set(samples.index.tolist())),
    }
    if len(heldout.distance) and len(samples.distance):
        near = float(np.percentile(heldout.distance, NEAR_PERCENTILE))
        body["ratio_of_medians"] = round(
            float(np.median(samples.distance) / max(1e-9, np.median(heldout.distance))), 6
        )
        body["heldout_percentile"] = {"percentile": NEAR_PERCENTILE, "distance": round(near, 6)}
        hits = int((samples.distance < near).sum())
        body["nearer_than_percentile"] = share(hits, len(samples.distance))
    return body


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
