"""Improved precision and recall: which samples look real, which real images could be sampled."""

from typing import Any

import numpy as np

from eval.features import evenly
from eval.measures import shares

NEIGHBOUR = 3
"""The k of Kynkäänniemi et al."""
_BLOCK = 1024


def radii(rows: np.ndarray, neighbour: int = NEIGHBOUR) -> np.ndarray:
    """Return each row's squared distance to its k-th nearest neighbour among the others."""
    found = [
        np.partition(squared(block, rows), neighbour, axis=1)[:, neighbour]  # the row itself is 0th
        for block in _blocks(rows)
    ]
    return np.concatenate(found)


def inside(rows: np.ndarray, others: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Tell of each row whether it is within the radius of any of `others` (arXiv:1904.06991,
    Eq. 1).
    """
    return np.concatenate([(squared(b, others) <= radius).any(axis=1) for b in _blocks(rows)])


def figures(rows: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return precision and recall of (n, d) rows (Kynkäänniemi et al., arXiv:1904.06991, Eq. 2).

    As many rows as the reference has are compared, or the other way round: recall grows with the
    samples. The intervals are those of shares, the other side taken as it is.
    """
    n = min(len(rows), len(reference))
    if n <= NEIGHBOUR:
        return {"precision": shares.share(0, 0), "recall": shares.share(0, 0)}
    x, y = (evenly(side, n).astype(np.float64) for side in (rows, reference))
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre  # so that little cancels in |a|^2 + |b|^2 - 2ab
    precise, recalled = inside(x, y, radii(y)), inside(y, x, radii(x))
    return {
        "precision": shares.share(int(precise.sum()), n),
        "recall": shares.share(int(recalled.sum()), n),
    }


def squared(block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the squared distances of (b, d) rows to (n, d) rows."""
    sums = (block**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1)
    return np.clip(sums - 2 * (block @ rows.T), 0, None)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Cut rows so that distances to all others are never in memory at once."""
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
