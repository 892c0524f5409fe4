"""Sinusoidal features of a scalar, made outside the network and given to it as input.

In float64, rounded once: sin and cos of large arguments in less differ between devices. An exported
network then needs no schedule arithmetic.
"""

import math

import torch

FEATURES = 64
"""Width of the features of one scalar."""
_LOWEST, _HIGHEST = 2.0**-6, 2.0**2  # rad per unit of log-SNR: one period spans 400 … 1.6 units


def sinusoids(value: torch.Tensor) -> torch.Tensor:
    """Return sine and cosine features. `value`: (b,) float64, such as log-SNR -> (b, f) float32."""
    ends, half = (math.log(_LOWEST), math.log(_HIGHEST)), FEATURES // 2
    # made where `value` is: a copy from the host would wait for the device, in every step
    exponents = torch.linspace(*ends, half, dtype=torch.float64, device=value.device)
    angles = value.double()[:, None] * exponents.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
