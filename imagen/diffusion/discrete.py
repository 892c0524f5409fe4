"""Schedules of numbered steps, as other libraries have them, and back.

Step i of `num` is time i / (num - 1): the first step's noise is t = 0, the last one's t = 1.
"""

import torch

from imagen.diffusion.schedule import LogSNR
from imagen.errors import ConfigError


def alphas_cumprod(schedule: LogSNR, num: int) -> torch.Tensor:
    """Return alpha^2 of `num` >= 2 steps of a schedule: (num,) float64, falling."""
    if num < 2:
        raise ConfigError(f"a discrete schedule of {num} steps has no two ends")
    return torch.sigmoid(schedule(torch.linspace(0, 1, num, dtype=torch.float64)))


def betas(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return the variance that each step adds: (num,), with product(1 - betas) = alphas_cumprod."""
    before = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    return 1 - alphas_cumprod / before


def schedule_of(alphas_cumprod: torch.Tensor) -> LogSNR:
    """Return the schedule t (...,) -> log-SNR through falling `alphas_cumprod`: (num,).

    Exact at the steps; between them alpha is linear, so that a last step of zero SNR is no trouble.
    Raises ConfigError if they don't fall within [0, 1).
    """
    knots = alphas_cumprod.double().sqrt()
    if len(knots) < 2 or not (knots.diff() < 0).all() or not 0 <= knots[-1] < knots[0] < 1:
        raise ConfigError(
            f"alphas_cumprod of {len(knots)} steps are not two or more that fall within [0, 1)",
            "give the cumulated product of 1 - beta, first step first",
        )

    def logsnr(t: torch.Tensor) -> torch.Tensor:
        alphas = knots.to(t.device)
        position = t.double() * (len(alphas) - 1)
        below = position.floor().long().clamp(0, len(alphas) - 2)
        alpha = torch.lerp(alphas[below], alphas[below + 1], position - below)
        return 2 * torch.log(alpha) - torch.log1p(-alpha.square())

    return logsnr
