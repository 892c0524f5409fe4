"""The noise schedule: continuous time t in [0, 1] -> log-SNR -> alpha, sigma. All in float64.

Variance preserving: alpha^2 + sigma^2 = 1, alpha^2 = sigmoid(logsnr). In these terms EDM's sigma is
sigma / alpha = exp(-logsnr / 2), and the time of a straight (rectified) flow sigma / (alpha +
sigma).
"""

import math
from collections.abc import Callable

import torch

from imagen.diffusion.config import DiffusionConfig

LOGSNR_MAX = 15.0
"""Cosine and rectified: log-SNR at t = 0; it is minus this at t = 1."""
BETA_MIN, BETA_MAX, BETA_STEPS = 1e-4, 0.02, 1000
"""Linear: variances of the first and of the last step, and number of steps of DDPM."""
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
"""EDM: sigma / alpha at t = 0 and at t = 1, and the power in which it is linear."""
P_MEAN, P_STD = -1.2, 1.2
"""EDM's training: mean and deviation of log(sigma / alpha)."""

_T_MIN = math.atan(math.exp(-0.5 * LOGSNR_MAX))
_T_MAX = math.atan(math.exp(0.5 * LOGSNR_MAX))
COSINE_SPAN = _T_MAX - _T_MIN
"""Cosine: range of the angle whose cosine is alpha, a little less than pi / 2."""
_S_MIN = 1 / (1 + math.exp(0.5 * LOGSNR_MAX))
RECTIFIED_SPAN = 1 - 2 * _S_MIN
"""Rectified: range of sigma / (alpha + sigma), a little less than 1."""

LogSNR = Callable[[torch.Tensor], torch.Tensor]
"""t (...,) in [0, 1] -> log-SNR (...,) float64."""


def cosine_logsnr(t: torch.Tensor) -> torch.Tensor:
    """Return log-SNR at `t`: (...,) in [0, 1], falling from LOGSNR_MAX to -LOGSNR_MAX.

    alpha = cos(pi t / 2) (Nichol & Dhariwal, arXiv:2102.09672, Eq. 17, without its offset), cut at
    both ends as in the pseudo-code of Hoogeboom et al., arXiv:2301.11093. It is the schedule of
    augmentation levels, too.
    """
    return -2 * torch.log(torch.tan(_T_MIN + t.double() * COSINE_SPAN))


def linear_logsnr(t: torch.Tensor) -> torch.Tensor:
    """Return log-SNR at `t`: (...,) in [0, 1] of DDPM's linear betas in continuous time.

    alpha^2 = exp(-integral of beta), plus the first step's beta so that t = 0 is the first of the
    1000 discrete levels (Ho et al., arXiv:2006.11239, Sec. 4; Song et al., arXiv:2011.13456, App.
    C).
    """
    t = t.double()
    slope = (BETA_MAX - BETA_MIN) / 2
    return -torch.log(torch.expm1(BETA_MIN + BETA_STEPS * t * (BETA_MIN + slope * t)))


def edm_logsnr(t: torch.Tensor) -> torch.Tensor:
    """Return log-SNR at `t`: (...,) in [0, 1], sigma / alpha from 0.002 to 80, linear in power 1/7.

    Karras et al., arXiv:2206.00364, Eq. 5, with t = 0 at the clean end.
    """
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return -2 * RHO * torch.log(low + t.double() * (high - low))


def rectified_logsnr(t: torch.Tensor) -> torch.Tensor:
    """Return log-SNR at `t`: (...,) in [0, 1] of x = (1 - t) x0 + t eps, cut as the cosine is.

    Liu et al., arXiv:2209.03003, Eq. 1; scaled to unit variance its SNR is ((1 - t) / t)^2.
    """
    return -2 * torch.logit(_S_MIN + t.double() * RECTIFIED_SPAN)


_CURVES: dict[str, LogSNR] = {
    "cosine": cosine_logsnr,
    "linear": linear_logsnr,
    "edm": edm_logsnr,
    "rectified": rectified_logsnr,
}


def alpha_sigma(logsnr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return signal and noise scale at `logsnr`, in its dtype and shape; -inf gives 0 and 1."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def _shifted(config: DiffusionConfig, t: torch.Tensor) -> torch.Tensor:
    return _CURVES[config.schedule](t) + config.logsnr_shift


def end_alphas(config: DiffusionConfig) -> tuple[float, float]:
    """Return alpha at t = 0 and at t = 1, before any rescaling to zero terminal SNR."""
    first, last = alpha_sigma(_shifted(config, torch.tensor([0.0, 1.0])))[0].tolist()
    return first, last


def schedule(config: DiffusionConfig) -> LogSNR:
    """Return the schedule that a config asks for: t (...,) in [0, 1] -> log-SNR (...,) float64."""

    def shifted(t: torch.Tensor) -> torch.Tensor:
        return _shifted(config, t)

    def zero_terminal(t: torch.Tensor) -> torch.Tensor:
        # Lin et al., arXiv:2305.08891, Algorithm 1: alpha is moved to 0 at t = 1, kept at t = 0
        alpha0, alpha1 = end_alphas(config)
        alpha = (alpha_sigma(shifted(t))[0] - alpha1) * (alpha0 / (alpha0 - alpha1))
        logsnr = 2 * torch.log(alpha) - torch.log1p(-alpha.square())
        return torch.where(t >= 1, -math.inf, logsnr)  # exactly, where a GPU rounds otherwise

    return zero_terminal if config.zero_terminal_snr else shifted


def train_logsnr(config: DiffusionConfig, t: torch.Tensor) -> torch.Tensor:
    """Return the log-SNR (b,) that training uses for `t`: (b,), uniform in (0, 1).

    With log-normal times, t is the quantile of log(sigma / alpha) ~ N(P_MEAN, P_STD^2) (Karras et
    al., arXiv:2206.00364, Table 1), so that an even spread of t is an even spread of that.
    """
    if config.times == "uniform":
        return schedule(config)(t)
    return config.logsnr_shift - 2 * (P_MEAN + P_STD * torch.special.ndtri(t.double()))


def resolution_shift(size_px: int, reference_px: int = 64) -> float:
    """Return the `logsnr_shift` that makes images of `size_px` as noisy as those of `reference_px`.

    Hoogeboom et al., arXiv:2301.11093, its shifted cosine schedule.
    """
    return 2 * math.log(reference_px / size_px)
