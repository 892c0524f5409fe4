"""Principal components of the training images: features that need no weights and no network.

They see colours and coarse forms at 32x32, nothing of what things are: enough to tell whether the
samples as a whole are distributed like the data, too little to compare with published numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.features import colours
from imagen import manifest

MOST = 32
"""Components that are kept, at most."""
_BLOCK = 512
_ITERATIONS = 12


@dataclass(frozen=True, slots=True)
class Components:
    """A basis of the space of 32x32 pictures, the directions of most variance first."""

    mean: np.ndarray
    basis: np.ndarray
    """(d, k), orthonormal columns."""

    @classmethod
    def fit(cls, images: Sequence[np.ndarray]) -> "Components":
        """Return the components of uint8 (h, w, c) images; the same ones give the same basis."""
        moments, total, n = None, None, len(images)
        for start in range(0, n, _BLOCK):  # float64 of all at once would be large
            rows = colours(images[start : start + _BLOCK]).astype(np.float64)
            part = rows.T @ rows
            moments = part if moments is None else moments + part
            total = rows.sum(axis=0) if total is None else total + rows.sum(axis=0)
        assert moments is not None, "there are no images"
        assert total is not None, "there are no images"
        mean = total / n
        count = min(MOST, len(mean), max(1, n - 1))
        basis = _largest(moments / n - np.outer(mean, mean), count)
        signs = np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(count)])
        return cls(mean.astype(np.float32), (basis * signs).astype(np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 (n, k + 1) of rows of `eval.features.colours`.

        The last number is how far a picture is from what the components can say: they are blind to
        what the training images do not do, noise for one.
        """
        apart = rows - self.mean
        inside = apart @ self.basis
        left = np.linalg.norm(apart - inside @ self.basis.T, axis=1)
        return np.concatenate([inside, left[:, None]], axis=1)

    @property
    def fingerprint(self) -> str:
        """What identifies the basis."""
        return f"pca-{manifest.fingerprint(np.round(self.basis, 4).ravel().tolist())}"


def _largest(cov: np.ndarray, count: int) -> np.ndarray:
    """Return the eigenvectors of the largest eigenvalues, largest first.

    By orthogonal iteration with twice the vectors (Golub & Van Loan 2013, section 8.2.4): a tenth
    of the work of all eigenvectors, and it knows no matrix that it fails for.
    """
    start = np.random.RandomState(0).standard_normal((len(cov), min(2 * count, len(cov))))
    space, _ = np.linalg.qr(start)
    for _ in range(_ITERATIONS):
        space, _ = np.linalg.qr(cov @ space)
    _, turned = np.linalg.eigh(space.T @ cov @ space)
    return space @ turned[:, ::-1][:, :count]
