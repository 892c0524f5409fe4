"""Power-function EMA of the weights, by images seen.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
arXiv:2312.02696, section 3.1: an average whose width is a fixed share of the run so far, so that
the random initial weights are soon forgotten and no start-up correction is needed.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


def gamma(sigma_rel: float) -> float:
    """Return the exponent whose profile has relative width `sigma_rel` (inverse of Eq. 123)."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def sigma_rel(exponent: float) -> float:
    """Return sqrt(exponent + 1) / ((exponent + 2) sqrt(exponent + 3)) (Eq. 123)."""
    return float((exponent + 1) ** 0.5 / ((exponent + 2) * (exponent + 3) ** 0.5))


def beta(exponent: float, images_seen: int, global_batch: int) -> float:
    """Return the weight of the old average at the step that ends at `images_seen` (Eq. 127)."""
    return (1 - global_batch / images_seen) ** (exponent + 1)


@torch.no_grad()
def update(
    averages: Iterable[torch.Tensor], weights: Iterable[torch.Tensor], old_share: float
) -> None:
    """Move each average towards its weight, in place: old_share a + (1 - old_share) w."""
    get_ema_multi_avg_fn(old_share)(list(averages), [w.detach() for w in weights], 0)
