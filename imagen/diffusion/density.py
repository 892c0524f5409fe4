"""How densely training draws each noise level."""

import math

import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.schedule import (
    BETA_MAX,
    BETA_MIN,
    BETA_STEPS,
    COSINE_SPAN,
    P_MEAN,
    P_STD,
    RECTIFIED_SPAN,
    RHO,
    SIGMA_MAX,
    SIGMA_MIN,
    alpha_sigma,
    end_alphas,
)


def _cosine(logsnr: torch.Tensor) -> torch.Tensor:
    return 4 * COSINE_SPAN * torch.cosh(logsnr / 2)


def _linear(logsnr: torch.Tensor) -> torch.Tensor:
    integral = torch.nn.functional.softplus(-logsnr)  # of beta up to t, which follows from it
    rise = 2 * BETA_STEPS * (BETA_MAX - BETA_MIN)
    beta = torch.sqrt((BETA_STEPS * BETA_MIN) ** 2 + rise * (integral - BETA_MIN).clamp(min=0))
    return beta / torch.sigmoid(-logsnr)


def _edm(logsnr: torch.Tensor) -> torch.Tensor:
    rise = SIGMA_MAX ** (1 / RHO) - SIGMA_MIN ** (1 / RHO)
    return 2 * RHO * rise * torch.exp(logsnr / (2 * RHO))


def _rectified(logsnr: torch.Tensor) -> torch.Tensor:
    return 4 * RECTIFIED_SPAN * (1 + torch.cosh(logsnr / 2))


_SPEEDS = {"cosine": _cosine, "linear": _linear, "edm": _edm, "rectified": _rectified}


def speed(config: DiffusionConfig, logsnr: torch.Tensor) -> torch.Tensor:
    """Return -d logsnr / dt of `train_logsnr` at `logsnr`: (b,) float64, 1 / density of the draws.

    At zero terminal SNR it is infinite; there it is that of log-SNR -50.
    """
    shift = config.logsnr_shift
    if config.times == "lognormal":
        z = ((shift - logsnr) / 2 - P_MEAN) / P_STD
        return 2 * P_STD * math.sqrt(2 * math.pi) * torch.exp(z.square() / 2)
    curve = _SPEEDS[config.schedule]
    if not config.zero_terminal_snr:
        return curve(logsnr - shift)
    alpha0, alpha1 = end_alphas(config)
    alpha, sigma = alpha_sigma(logsnr.clamp(min=-50.0))
    before = alpha1 + alpha * ((alpha0 - alpha1) / alpha0)
    before_logsnr = 2 * torch.log(before) - torch.log1p(-before.square())
    # d alpha / d logsnr = alpha sigma^2 / 2, on both sides of the rescaling
    stretch = alpha0 / (alpha0 - alpha1) * before * (1 - before.square()) / (alpha * sigma.square())
    return stretch * curve(before_logsnr - shift)
