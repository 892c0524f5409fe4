"""The loss of one output element, and the weight of a noise level."""

import math

import torch
from torch.nn import functional

from imagen.diffusion.config import DiffusionConfig, Loss
from imagen.diffusion.density import speed
from imagen.diffusion.prediction import SIGMA_DATA, coefficients
from imagen.diffusion.schedule import alpha_sigma

MIN_SNR_GAMMA = 5.0
"""Largest weight of min-SNR (Hang et al., arXiv:2303.09556)."""
SIGMOID_BIAS = 2.0
"""log-SNR where the sigmoid's weight is half, at log-SNR shift 0 (Kingma & Gao, 2303.00848)."""
V_SIGMA_MIN = 0.05
"""Least divisor of the v-space error (Li & He, arXiv:2511.13720)."""


def elementwise(kind: Loss, error: torch.Tensor) -> torch.Tensor:
    """Return the loss of each element of `error`, in its shape; Huber's bend is at 1."""
    if kind == "l2":
        return error.square()
    if kind == "l1":
        return error.abs()
    return functional.huber_loss(error, torch.zeros_like(error), reduction="none")


def _x0_weight(config: DiffusionConfig, logsnr: torch.Tensor) -> torch.Tensor:
    """Return the weight (b,) of the squared error of x0."""
    if config.weighting == "min_snr":
        return torch.exp(logsnr).clamp(max=MIN_SNR_GAMMA)
    if config.weighting == "edm":
        return torch.exp(logsnr) + 1 / SIGMA_DATA**2
    if config.weighting == "v":
        return 1 / alpha_sigma(logsnr)[1].clamp(min=V_SIGMA_MIN).square()
    assert config.weighting == "sigmoid", "the others are above"
    bias = SIGMOID_BIAS + config.logsnr_shift
    # sigmoid(bias - logsnr) on the error of eps is e^bias sigmoid(logsnr - bias) on that of x0
    return 0.5 * speed(config, logsnr) * math.exp(bias) * torch.sigmoid(logsnr - bias)


def weight(config: DiffusionConfig, logsnr: torch.Tensor) -> torch.Tensor:
    """Return the factor (b,) float64 on the loss of the network's own output at `logsnr`: (b,).

    "none" is 1: the output's own error counts. The others weigh the squared error of x0, which is
    b^2 times that of the output (x0 = a xt + b out), so that every prediction has the same
    objective. They are for loss l2: another loss of the output is not b^2 times that of x0.

    - min_snr: min(SNR, 5) (Hang et al., arXiv:2303.09556).
    - edm: lambda(sigma) = 1 / sigma^2 + 1 / 0.5^2 (Karras et al., arXiv:2206.00364, Table 1).
    - v: the error of v, that of x0 over sigma, cut as in Li & He, arXiv:2511.13720.
    - sigmoid: sigmoid(bias - logsnr) on the error of eps, an integral over log-SNR however training
      draws it (Kingma & Gao, arXiv:2303.00848; Hoogeboom et al., arXiv:2410.19324). The bias moves
      with the log-SNR shift: images of every size are weighted alike.
    """
    logsnr = logsnr.double()
    if config.weighting == "none":
        return torch.ones_like(logsnr)
    b = coefficients(config.prediction, *alpha_sigma(logsnr))[1]
    return _x0_weight(config, logsnr) * b.square()
