"""What a network predicts, and the conversions between x0 and five kinds of output.

With xt = alpha x0 + sigma eps every kind is linear in x0 and eps, so x0 = a xt + b out:

| kind | out                          | source                                                  |
|------|------------------------------|---------------------------------------------------------|
| v    | alpha eps - sigma x0         | Salimans & Ho, arXiv:2202.00512, Sec. 4 and App. D      |
| eps  | eps                          | Ho et al., arXiv:2006.11239, Sec. 3.2                   |
| x0   | x0                           |                                                         |
| edm  | F with x0 = c_skip x + c_out F at x = xt / alpha | Karras et al., arXiv:2206.00364, Eq. 7 |
| flow | eps - x0, along x = xt / (alpha + sigma)         | Liu et al., arXiv:2209.03003, Eq. 1    |

`alpha`, `sigma` broadcast against the images. At zero SNR (alpha 0) eps alone says nothing of x0.
"""

import torch

from imagen.diffusion.config import Prediction

SIGMA_DATA = 0.5
"""edm: deviation of the data (Karras et al., arXiv:2206.00364, Table 1)."""


def diffuse(
    x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return xt = alpha x0 + sigma eps."""
    return alpha * x0 + sigma * eps


def _edm_norm(alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the deviation of xt where the data's is SIGMA_DATA."""
    return (sigma.square() + (alpha * SIGMA_DATA).square()).sqrt()


def coefficients(
    kind: Prediction, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (a, b) of x0 = a xt + b out."""
    if kind == "v":
        return alpha, -sigma
    if kind == "eps":
        return 1 / alpha, -sigma / alpha
    if kind == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if kind == "edm":  # c_skip / alpha and c_out of Table 1, free of division by alpha
        norm = _edm_norm(alpha, sigma)
        return alpha * (SIGMA_DATA / norm) ** 2, sigma * SIGMA_DATA / norm
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def target(
    kind: Prediction, x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return what a perfect network of this `kind` puts out."""
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "eps":
        return eps
    if kind == "flow":
        return eps - x0
    if kind == "edm":
        return (sigma / SIGMA_DATA * x0 - alpha * SIGMA_DATA * eps) / _edm_norm(alpha, sigma)
    return x0


def to_x0(
    kind: Prediction, out: torch.Tensor, xt: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return x0 from a network output of this `kind`."""
    a, b = coefficients(kind, alpha, sigma)
    return a * xt + b * out


def from_x0(
    kind: Prediction, x0: torch.Tensor, xt: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return the `kind` that belongs to `x0` at `xt`; the inverse of `to_x0`."""
    a, b = coefficients(kind, alpha, sigma)
    return (x0 - a * xt) / b


def input_scale(kind: Prediction, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return what xt is multiplied by for the network: 1, but for edm c_in / alpha.

    Karras et al., arXiv:2206.00364, Table 1: inputs of unit variance for data of SIGMA_DATA.
    """
    return 1 / _edm_norm(alpha, sigma) if kind == "edm" else torch.ones_like(alpha)
