"""A judge of handwritten digits that also knows what is not a digit.

A logistic regression on Gaussian-kernel features (Nystroem) of 32x32 grey pixels, with eleven
classes: ten digits, learnt from the real training images only, and "none", learnt from blanks,
noise of several grains, blends of two digits and shuffled pieces of digits, all drawn from a fixed
seed. Log loss makes its probabilities honest; an answer counts only when it passes the gate.
(Measured beside it: one-vs-rest support vector machines are as good at seven times the cost;
multi-class votes cannot be calibrated; a small MLP is two points worse.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from eval.features import SIDE, greys
from imagen.errors import ShardError

NONE = 10
"""The class "shows no digit"."""
GATE = 0.5
"""Least probability at which the judge's answer counts."""
LEAST_IMAGES = 3
"""Fewest training images of a digit that the judge learns it from."""
LANDMARKS = 500
"""Rows that the kernel is approximated with."""
_SEED = 20_260
_NEGATIVES = 200  # of each sort
_SHIFTS_PX = ((0, 0), (0, 2), (0, -2), (2, 0), (-2, 0))


@dataclass(frozen=True, slots=True)
class Judge:
    """A fitted judge."""

    classifier: Any

    @classmethod
    def fit(cls, images: Sequence[np.ndarray], labels: Sequence[int]) -> "Judge":
        """Return a judge that learnt from uint8 (h, w, c) `images` of the digits `labels`.

        Raises ShardError when a digit has fewer than three images.
        """
        from sklearn.kernel_approximation import Nystroem  # half a second to import
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        counts = np.bincount(np.asarray(labels, int), minlength=10)
        if counts.min() < LEAST_IMAGES:
            raise ShardError(
                f"digit {counts.argmin()} has {counts.min()} training images, "
                f"the judge needs {LEAST_IMAGES} or more of each digit",
                "prepare more images, or set eval.judge=none",
            )
        real = greys(images)
        none = not_digits(real, np.asarray(labels), np.random.default_rng(_SEED))
        rows = np.concatenate([*(_shifted(real, *by) for by in _SHIFTS_PX), none])
        known = np.tile(np.asarray(labels), len(_SHIFTS_PX))
        classes = np.concatenate([known, np.full(len(none), NONE)])
        kernel = Nystroem(
            gamma=1 / (rows.shape[1] * float(rows.var())),
            n_components=min(LANDMARKS, len(rows)),
            random_state=0,
        )
        classifier = make_pipeline(kernel, LogisticRegression(C=100.0, max_iter=1000))
        return cls(classifier.fit(rows, classes))

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probability of each digit and of "none" for each image, (n, 11)."""
        return self.classifier.predict_proba(greys(images))

    def verdicts(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the digit of each image, -1 where it fails the gate, and the confidence."""
        probabilities = self.probabilities(images)
        digits = probabilities[:, :NONE].argmax(axis=1)
        confidence = probabilities[np.arange(len(digits)), digits]
        return np.where(confidence >= GATE, digits, -1), confidence


def not_digits(real: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rows that show no digit: (n, side * side) in [0, 1]."""
    count = _NEGATIVES
    first, second = rng.integers(len(real), size=(2, count))
    differ = labels[first] != labels[second]
    sorts = [
        np.repeat(rng.random((count, 1)), real.shape[1], axis=1),
        *(_grain(cells, count, rng) for cells in (4, 8, 16, SIDE)),
        np.clip(rng.normal(0.5, 1.0, (count, real.shape[1])), 0, 1),
        np.clip(rng.normal(0.0, 0.3, (count, real.shape[1])), 0, 1),
        (real[first[differ]] + real[second[differ]]) / 2,
        _shuffled(real[first], 4, rng),
    ]
    return np.concatenate(sorts).astype(np.float32)


def _shifted(rows: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return images moved by a few pixels; what comes in from outside repeats the edge."""
    m = max(abs(down), abs(right))
    padded = np.pad(rows.reshape(-1, SIDE, SIDE), ((0, 0), (m, m), (m, m)), mode="edge")
    return padded[:, m - down : m - down + SIDE, m - right : m - right + SIDE].reshape(rows.shape)


def _grain(cells: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise of cells x cells smooth spots."""
    coarse = (rng.random((count, cells, cells)) * 255).astype(np.uint8)
    how = Image.Resampling.BICUBIC
    rows = [np.asarray(Image.fromarray(c).resize((SIDE, SIDE), how)).ravel() for c in coarse]
    return np.stack(rows) / 255.0


def _shuffled(rows: np.ndarray, pieces: int, rng: np.random.Generator) -> np.ndarray:
    """Return images cut into pieces x pieces squares that were dealt out anew."""
    n, k = len(rows), SIDE // pieces
    tiles = rows.reshape(n, pieces, k, pieces, k).transpose(0, 1, 3, 2, 4)
    tiles = tiles.reshape(n, pieces * pieces, k, k)
    dealt = np.stack([image[rng.permutation(pieces * pieces)] for image in tiles])
    dealt = dealt.reshape(n, pieces, pieces, k, k).transpose(0, 1, 3, 2, 4)
    return dealt.reshape(n, SIDE * SIDE)
