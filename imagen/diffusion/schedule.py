"""The noise schedule: continuous time t in [0, 1] -> log-SNR -> alpha, sigma. All in float64.

Variance preserving: alpha^2 + sigma^2 = 1, alpha^2 = sigmoid(logsnr).
"""

import math

import torch

LOGSNR_MAX = 15.0
"""log-SNR at t = 0; it is minus this at t = 1."""
_T_MIN = math.atan(math.exp(-0.5 * LOGSNR_MAX))
_T_MAX = math.atan(math.exp(0.5 * LOGSNR_MAX))


def cosine_logsnr(t: torch.Tensor) -> torch.Tensor:
    """Return log-SNR at `t`: (b,) in [0, 1], falling from LOGSNR_MAX to -LOGSNR_MAX.

    alpha = cos(pi t / 2) (Nichol & Dhariwal, arXiv:2102.09672, Eq. 17, without its offset), cut at
    both ends as in the pseudo-code of Hoogeboom et al., arXiv:2301.11093.
    """
    return -2 * torch.log(torch.tan(_T_MIN + t.double() * (_T_MAX - _T_MIN)))


def alpha_sigma(logsnr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return signal and noise scale at `logsnr`, in its dtype and shape."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
