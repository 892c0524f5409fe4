"""Which noise levels a sampler visits."""

import math

import torch

from imagen.diffusion.config import Spacing
from imagen.diffusion.schedule import LOGSNR_MAX, RHO, LogSNR
from imagen.errors import ConfigError


def path(
    schedule: LogSNR, steps: int, spacing: Spacing = "time", start: float = 1.0
) -> list[float]:
    """Return steps + 1 rising log-SNRs from t = `start` in (0, 1] to t = 0.

    `spacing` is what they divide evenly: "time" t, "logsnr" log-SNR, "karras" (sigma / alpha)^(1/7)
    (Karras et al., arXiv:2206.00364, Eq. 5). Zero SNR is -inf and is visited first.
    """
    if steps < 1:
        raise ConfigError(f"steps {steps} is less than 1")
    if not 0 < start <= 1:
        raise ConfigError(f"start {start} is not a time in (0, 1]")
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if spacing == "time":
        return schedule(start * (1 - torch.arange(steps + 1).double() / steps)).tolist()
    first, last = schedule(torch.tensor([start, 0.0], dtype=torch.float64)).tolist()
    # an infinite first level divides nothing: the others are spread as if it were this one
    finite = max(first, -LOGSNR_MAX) if math.isinf(first) else first
    if spacing == "logsnr":
        levels = finite + even * (last - finite)
    elif spacing == "karras":
        low, high = (math.exp(-level / (2 * RHO)) for level in (last, finite))
        levels = -2 * RHO * torch.log(high + even * (low - high))
    else:
        raise ConfigError(f"spacing {spacing!r} is none of time, logsnr, karras")
    return [first, *levels[1:].tolist()]
