"""How like the real images the samples are as a whole, in the features of one network."""

from typing import Any

import numpy as np

from eval.measures import frechet, kernel, manifold
from eval.statistics import Statistics


def figures(rows: np.ndarray, real: Statistics) -> dict[str, Any]:
    """Return Fréchet and kernel distance, precision and recall of features (n, d)."""
    return {
        "fd": frechet.figure(rows, real.gaussian),
        "kid": kernel.figure(rows, real.features),
        **manifold.figures(rows, real.features),
        "n": len(rows),
        "network": real.network,
        "reference": {"what": real.what, "n": real.gaussian.n},
    }


def point(rows: np.ndarray, real: Statistics) -> dict[str, Any]:
    """Return the figures alone, by the names that sweeps have for them."""
    found = figures(rows, real)
    return {name: found[name] for name in ("fd", "kid", "precision", "recall")}
