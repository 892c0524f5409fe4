"""Fréchet distance of two Gaussians, and the statistics that it takes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eval.measures import intervals

GROUPS = 20
"""Of the jackknife: the interval costs as many eigenvalue problems as there are groups."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and covariance (d, d) of n rows, in float64."""

    mean: np.ndarray
    scatter: np.ndarray
    """Sum of (x - mean)(x - mean)^T: what two sets' statistics are added up by."""
    n: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "Gaussian":
        """Return the statistics of (n, d) rows."""
        assert len(rows), "no rows have no mean"
        values = rows.astype(np.float64)
        mean = values.mean(axis=0)
        return cls(mean, (values - mean).T @ (values - mean), len(rows))

    @cached_property
    def cov(self) -> np.ndarray:
        """Unbiased covariance; zeros for a single row."""
        return self.scatter / max(1, self.n - 1)

    @cached_property
    def root(self) -> np.ndarray:
        """Symmetric square root of the covariance."""
        values, vectors = np.linalg.eigh(self.cov)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    def __add__(self, other: "Gaussian") -> "Gaussian":
        """Return the statistics of both sets together (Chan, Golub & LeVeque 1983)."""
        return self._with(other, 1)

    def __sub__(self, part: "Gaussian") -> "Gaussian":
        """Return the statistics without a part of the set."""
        return self._with(part, -1)

    def _with(self, other: "Gaussian", sign: int) -> "Gaussian":
        n = self.n + sign * other.n
        assert n > 0, "nothing would be left"
        mean = (self.n * self.mean + sign * other.n * other.mean) / n
        # scatter about zero adds up; written with differences of means, nothing large cancels
        apart = other.mean - (mean if sign < 0 else self.mean)
        held = n if sign < 0 else self.n
        shared = held * other.n / (held + other.n) * np.outer(apart, apart)
        return Gaussian(mean, self.scatter + sign * (other.scatter + shared), n)


def distance(found: Gaussian, reference: Gaussian) -> float:
    """Return the squared Fréchet distance of two Gaussians (Heusel et al., arXiv:1706.08500, Eq. 6;
    Dowson & Landau 1982).

    The trace of (A B)^(1/2) is taken from the eigenvalues of B^(1/2) A B^(1/2), which is symmetric
    and has the same ones: real numbers also where A or B is singular. The root of the reference is
    computed once.
    """
    values = np.linalg.eigvalsh(reference.root @ found.cov @ reference.root)
    apart = found.mean - reference.mean
    traces = np.trace(found.cov) + np.trace(reference.cov)
    return max(0.0, float(apart @ apart + traces - 2 * np.sqrt(np.clip(values, 0, None)).sum()))


def figure(rows: np.ndarray, reference: Gaussian) -> dict[str, Any]:
    """Return the distance of (n, d) rows from a reference, as in metrics.json.

    Interval: jackknife over at most `GROUPS` groups of rows, the reference taken as it is. Few
    rows make the distance too large, which no interval shows: compare equal numbers of images.
    """
    value, left_out = (_of_few if len(rows) < rows.shape[1] else _of_many)(rows, reference)
    if len(rows) < 3:
        return intervals.figure(value, None, len(rows))
    error = intervals.jackknife_error(left_out)
    return intervals.figure(value, intervals.around(value, error, low=0.0), len(rows))


def _of_many(rows: np.ndarray, reference: Gaussian) -> tuple[float, list[float]]:
    """Return the distance, and what it is without each group of rows."""
    groups = [Gaussian.of(part) for part in np.array_split(rows, min(GROUPS, len(rows)))]
    whole = sum(groups[1:], groups[0])
    parts = groups if len(rows) > 2 else []
    return distance(whole, reference), [distance(whole - g, reference) for g in parts]


def _of_few(rows: np.ndarray, reference: Gaussian) -> tuple[float, list[float]]:
    """Return the same as `_of_many` for fewer rows than they have features.

    With A = X^T X / (n - 1) of centred rows X, the eigenvalues of A B that are not zero are those
    of X B X^T / (n - 1), which has n rows where A has d.
    """
    values = rows.astype(np.float64) - reference.mean
    products, covered = values @ values.T, values @ reference.cov @ values.T
    trace = float(np.trace(reference.cov))

    def without(group: np.ndarray) -> float:
        keep = np.delete(np.arange(len(values)), group)
        n, at = len(keep), np.ix_(keep, keep)
        freedom, inner = max(1, n - 1), products[at]
        roots = np.linalg.eigvalsh(_centred(covered[at]) / freedom)
        apart = inner.mean()  # squared difference of the means
        own = np.trace(_centred(inner)) / freedom
        return max(0.0, float(apart + own + trace - 2 * np.sqrt(np.clip(roots, 0, None)).sum()))

    groups = np.array_split(np.arange(len(rows)), min(GROUPS, len(rows)))
    nothing = np.arange(0)
    return without(nothing), [without(group) for group in groups if len(rows) > 2]


def _centred(products: np.ndarray) -> np.ndarray:
    """Return the scalar products of rows about their mean, from those about another point."""
    of_rows = products.mean(axis=0)
    return products - of_rows - of_rows[:, None] + of_rows.mean()
