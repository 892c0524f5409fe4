"""What a network predicts, and the conversions between x0, eps and v.

With xt = alpha x0 + sigma eps and v = alpha eps - sigma x0 (Salimans & Ho, arXiv:2202.00512,
Sec. 4 and App. D), each of the three follows from another and xt. `alpha`, `sigma` broadcast
against the images.
"""

from typing import Literal

import torch

Prediction = Literal["v", "eps", "x0"]


def diffuse(
    x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return xt = alpha x0 + sigma eps."""
    return alpha * x0 + sigma * eps


def target(
    kind: Prediction, x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return what a perfect network of this `kind` puts out."""
    if kind == "v":
        return alpha * eps - sigma * x0
    return eps if kind == "eps" else x0


def to_x0(
    kind: Prediction, out: torch.Tensor, xt: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return x0 from a network output of this `kind`."""
    if kind == "v":
        return alpha * xt - sigma * out
    return (xt - sigma * out) / alpha if kind == "eps" else out


def from_x0(
    kind: Prediction, x0: torch.Tensor, xt: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return the `kind` that belongs to `x0` at `xt`; the inverse of `to_x0`."""
    if kind == "v":
        return (alpha * xt - x0) / sigma
    return (xt - alpha * x0) / sigma if kind == "eps" else x0
