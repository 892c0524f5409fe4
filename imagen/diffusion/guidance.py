"""Guidance by text, and thresholding of the predicted clean image."""

import math

import torch

from imagen.diffusion.config import SamplingConfig
from imagen.diffusion.schedule import LogSNR

APG_MOMENTUM = -0.5
"""Share of the step before in the guidance direction; negative turns away from it."""
APG_NORM = 0.05
"""Largest root mean square of the guidance direction, a value (of images in [-1, 1])."""


def guide(cond: torch.Tensor, uncond: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Return uncond + w (cond - uncond); w = 1 is the conditional prediction.

    Ho & Salimans, arXiv:2207.12598, Eq. 6 with their w + 1 as `guidance_scale`, as in Imagen,
    arXiv:2205.11487, Eq. 2.
    """
    return torch.lerp(uncond, cond, guidance_scale)


class ProjectedGuidance:
    """Adaptive projected guidance of one trajectory (Sadat et al., arXiv:2410.02416, Algorithm 1).

    Only the part of the direction that is orthogonal to the conditional prediction guides, bounded
    in size and with momentum over steps, so that high scales saturate less. All of it is in x0.
    """

    def __init__(self) -> None:
        self._momentum: torch.Tensor | None = None

    def __call__(
        self, cond: torch.Tensor, uncond: torch.Tensor, guidance_scale: float
    ) -> torch.Tensor:
        """Return the guided x0 of two predictions of x0, each (b, c, h, w); scale 1 is `cond`."""
        direction = cond - uncond
        if self._momentum is not None:
            direction = direction + APG_MOMENTUM * self._momentum
        self._momentum = direction
        size = direction.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        direction = direction * (APG_NORM / size.clamp(min=APG_NORM))
        along = _dot(direction, cond) / _dot(cond, cond).clamp(min=torch.finfo(cond.dtype).tiny)
        return cond + (guidance_scale - 1) * (direction - along * cond)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def scale_at(config: SamplingConfig, schedule: LogSNR, logsnr: float) -> float:
    """Return the guidance scale at a noise level: 1 outside the interval of times.

    Kynkäänniemi et al., arXiv:2404.07724. An interval that reaches t = 0 or 1 has no end there.
    """
    low, high = config.guidance_interval
    most, least = schedule(torch.tensor([low, high], dtype=torch.float64)).tolist()
    most, least = (math.inf if low == 0 else most), (-math.inf if high == 1 else least)
    return config.guidance_scale if least <= logsnr <= most else 1.0


def static_threshold(x0: torch.Tensor) -> torch.Tensor:
    """Clip to [-1, 1]. Imagen, arXiv:2205.11487, Sec. 2.3."""
    return x0.clamp(-1, 1)


def dynamic_threshold(
    x0: torch.Tensor, percentile: float, cap: float | None = None
) -> torch.Tensor:
    """Clip each image to its own `percentile` of |x0| (from 1 to `cap`), scale back into [-1, 1].

    `x0`: (b, c, h, w); `percentile` in (0, 1]; 1 leaves images within [-1, 1] as they are; `cap`
    1 is the static threshold. Imagen, arXiv:2205.11487, Sec. 2.3.
    """
    s = _quantile(x0.flatten(1).abs(), percentile).clamp(min=1.0, max=cap)[:, None, None, None]
    return x0.clamp(-s, s) / s


def _quantile(values: torch.Tensor, percentile: float) -> torch.Tensor:
    """Return the linearly interpolated `percentile` of each row: (b, n) -> (b,).

    As `torch.quantile` along rows, which sorts all of a row and takes no more than 16 million.
    """
    rank = percentile * (values.shape[1] - 1)
    below = int(rank)
    # the largest from rank `below` on, in falling order: at high percentiles few
    top = values.topk(values.shape[1] - below, dim=1).values[:, -2:]
    return torch.lerp(top[:, -1], top[:, 0], rank - below)


def threshold(config: SamplingConfig, x0: torch.Tensor) -> torch.Tensor:
    """Return `x0` (b, c, h, w) kept in range as `config` says."""
    if config.threshold == "dynamic":
        return dynamic_threshold(x0, config.threshold_percentile, config.threshold_cap)
    return static_threshold(x0) if config.threshold == "static" else x0
