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
    groups = [Gaussian.of(part) for part in np.array_split(rows, min(GROUPS, len(rows)))]
    whole = sum(groups[1:], groups[0])
    value = distance(whole, reference)
    if len(rows) < 3:
        return intervals.figure(value, None, len(rows))
    error = intervals.jackknife_error([distance(whole - g, reference) for g in groups])
    return intervals.figure(value, intervals.around(value, error, low=0.0), len(rows))
