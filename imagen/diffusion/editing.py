"""Editing of given images: repaint a region, or start from a noised image."""

from collections.abc import Sequence
from itertools import count

import torch

from imagen.diffusion.samplers import Denoise, Noise, OnStep, ancestral, ignore
from imagen.diffusion.steps import Level, level, steps
from imagen.errors import ConfigError


def noised(x0: torch.Tensor, logsnr: float, eps: torch.Tensor) -> torch.Tensor:
    """Return `x0` at a noise level: where the sampling of a variation of it starts."""
    _, alpha, sigma = level(logsnr)
    return alpha * x0 + sigma * eps


def _back(
    mean: torch.Tensor, deviation: float, then: Level, now: Level
) -> tuple[torch.Tensor, float]:
    """Return mean and deviation at level `now` of what has these at the next level, `then`.

    The noise of the step and the noise that is added again are one Gaussian, so one draw is both.
    """
    ratio = now.alpha / then.alpha
    added = now.sigma**2 - (ratio * then.sigma) ** 2
    return ratio * mean, ((ratio * deviation) ** 2 + added) ** 0.5


def repaint(
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    known: torch.Tensor,
    mask: torch.Tensor,
    *,
    noise: Noise,
    resample: int = 4,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 that is `known` outside the mask and fits to it inside.

    RePaint (Lugmayr et al., arXiv:2201.09865, Algorithm 1) with ancestral steps. `known`: clean
    images (b or 1, c, h, w); `mask`: (b or 1, 1, h, w), over 0.5 = paint. Before each network call
    the known part enters with fresh noise of exactly the level that the call is told. Each step but
    the last is taken `resample` >= 1 times, with the noise added again between, so that what is
    painted hears of what is known. There is one draw of `noise` for each call: what it adds to the
    known part and to the painted part are other pixels.
    """
    if resample < 1:
        raise ConfigError(f"resample {resample} is less than 1")
    draws = count()
    paint = mask > 0.5
    x0, mean, deviation = x, x, 0.0
    for i, now, then, last in steps(logsnrs):
        for left in reversed(range(1 if last else resample)):
            eps = noise(next(draws))
            seen = now.alpha * known + now.sigma * eps
            x = torch.where(paint, mean + deviation * eps, seen)
            x0 = denoise(x, now.logsnr)
            mean, deviation = ancestral(x, x0, now, then)
            if left:
                mean, deviation = _back(mean, deviation, then, now)
        on_step(i)
    return torch.where(paint, x0, known)
