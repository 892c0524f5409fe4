"""Kernel distance: maximum mean discrepancy by a cubic kernel, KID on features of inception."""

from typing import Any

import numpy as np

from eval.features import evenly
from eval.measures import intervals

MOST = 5000
"""Rows of either side that are looked at: the cost grows with their product."""
GROUPS = 10
"""Of each side, for the jackknife."""


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the kernel (x . y / d + 1)^3 of all pairs (Bińkowski et al., arXiv:1801.01401,
    section 4).
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def figure(rows: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return the kernel distance of (n, d) rows from a reference, as in metrics.json.

    All pairs of up to `MOST` rows of either side count at once, where others average over random
    subsets: the same expectation, a smaller error. The interval is a jackknife that leaves out
    groups of either side; the spread over subsets, which others report, is no error of their mean.
    """
    x, y = evenly(rows, MOST), evenly(reference, MOST)
    if min(len(x), len(y)) < 2:
        return intervals.figure(None, None, len(x))
    sums = _Sums(x.astype(np.float64), y.astype(np.float64))
    value = sums.discrepancy()
    if min(len(sums.x), len(sums.y)) < 2:
        return intervals.figure(value, None, len(x))
    of_x = intervals.jackknife_error([sums.discrepancy(i, None) for i in range(len(sums.x))])
    of_y = intervals.jackknife_error([sums.discrepancy(None, i) for i in range(len(sums.y))])
    error = float(np.hypot(of_x, of_y))
    return intervals.figure(value, intervals.around(value, error), len(x))


class _Sums:
    """Sums of the kernel over pairs of groups: with them, leaving a group out costs nothing."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x = np.array_split(x, min(GROUPS, len(x) // 2))
        self.y = np.array_split(y, min(GROUPS, len(y) // 2))
        self._xx, self._yy = _within(self.x), _within(self.y)
        self._xy = np.array([[polynomial(a, b).sum() for b in self.y] for a in self.x])

    def discrepancy(self, without_x: int | None = None, without_y: int | None = None) -> float:
        """Return the squared discrepancy, perhaps with a group of one side left out.

        The unbiased estimate: means over pairs of different rows (Gretton et al. 2012, Lemma 6).
        """
        keep_x, keep_y = _others(len(self.x), without_x), _others(len(self.y), without_y)
        m, n = sum(len(self.x[i]) for i in keep_x), sum(len(self.y[i]) for i in keep_y)
        xx = self._xx[np.ix_(keep_x, keep_x)].sum() / (m * (m - 1))
        yy = self._yy[np.ix_(keep_y, keep_y)].sum() / (n * (n - 1))
        return float(xx + yy - 2 * self._xy[np.ix_(keep_x, keep_y)].sum() / (m * n))


def _within(groups: list[np.ndarray]) -> np.ndarray:
    """Return the sums over pairs of different rows, by the groups that they are in."""
    sums = np.array([[polynomial(a, b).sum() for b in groups] for a in groups])
    for i, group in enumerate(groups):
        sums[i, i] -= (((group * group).sum(axis=1) / group.shape[1] + 1) ** 3).sum()
    return sums


def _others(count: int, without: int | None) -> list[int]:
    return [i for i in range(count) if i != without]
