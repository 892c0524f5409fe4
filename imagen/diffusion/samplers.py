"""Samplers: each one function of (denoise, x, times), where `denoise(xt, t) -> x0`.

`x`: (b, c, h, w), pure noise at times[0]; `times`: decreasing floats in [0, 1], one network call
for each but the last. `on_step(i)` is called after step i. Coefficients are float64 on the host.
"""

import math
from collections.abc import Callable, Sequence

import torch

from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr

Denoise = Callable[[torch.Tensor, float], torch.Tensor]


def uniform_times(steps: int) -> list[float]:
    """Return steps + 1 times from 1 to 0 at equal distances."""
    return [1 - i / steps for i in range(steps + 1)]


def _coefficients(times: Sequence[float]) -> list[tuple[float, float, float]]:
    """Return (alpha, sigma, half log-SNR) at each time."""
    logsnr = cosine_logsnr(torch.tensor(times, dtype=torch.float64))
    alpha, sigma = alpha_sigma(logsnr)
    return list(zip(alpha.tolist(), sigma.tolist(), (logsnr / 2).tolist(), strict=True))


def _ignore(step: int) -> None:
    pass


def ddim(
    denoise: Denoise,
    x: torch.Tensor,
    times: Sequence[float],
    on_step: Callable[[int], None] = _ignore,
) -> torch.Tensor:
    """Return x0 by deterministic DDIM (Song et al., arXiv:2010.02502, Eq. 12 with sigma = 0)."""
    coefficients = _coefficients(times)
    x0 = x
    for i, t in enumerate(times[:-1]):
        (alpha, sigma, _), (alpha_s, sigma_s, _) = coefficients[i : i + 2]
        x0 = denoise(x, t)
        eps = (x - alpha * x0) / sigma
        x = alpha_s * x0 + sigma_s * eps
        on_step(i)
    return x0


def dpmpp_2m(
    denoise: Denoise,
    x: torch.Tensor,
    times: Sequence[float],
    on_step: Callable[[int], None] = _ignore,
) -> torch.Tensor:
    """Return x0 by DPM-Solver++(2M) (Lu et al., arXiv:2211.01095, Algorithm 2).

    The first and the last step are first order.
    """
    coefficients = _coefficients(times)
    x0 = previous = x
    for i, t in enumerate(times[:-1]):
        (_, sigma, lam), (alpha_s, sigma_s, lam_s) = coefficients[i : i + 2]
        x0 = denoise(x, t)
        h = lam_s - lam
        direction = x0
        if 0 < i < len(times) - 2:
            r = (lam - coefficients[i - 1][2]) / h
            direction = x0 + (x0 - previous) / (2 * r)
        x = (sigma_s / sigma) * x - alpha_s * math.expm1(-h) * direction
        previous = x0
        on_step(i)
    return x0


SAMPLERS = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}
"""Samplers by the name that configs and commands use."""
