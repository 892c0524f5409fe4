"""The residual block of a U-Net. Imagen: Saharia et al., arXiv:2205.11487, Appendix B and F.

Everything is channels-last: there the pixels of an image are rows of its channels, so `as_pixels`
and `as_image` are views, and layers on pixels cost no copy. That holds on CPUs and in
compiled blocks; torch's eager GroupNorm on CUDA makes its output channels-first.
"""

from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional

from imagen.network.config import num_groups

SKIP_SCALE = 2**-0.5
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def group_norm(width: int) -> nn.GroupNorm:
    """Return the GroupNorm of a width."""
    return nn.GroupNorm(num_groups(width), width)


def zero_init(module: Layer) -> Layer:
    """Set weight and bias to zero, so that the branch starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def as_pixels(x: torch.Tensor) -> torch.Tensor:
    """View an image (b, c, h, w) as rows of pixels (b, h w, c)."""
    return x.flatten(2).transpose(1, 2)


def as_image(pixels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View rows of pixels (b, h w, c) as an image (b, c, h, w), in the shape of `like`."""
    return pixels.transpose(1, 2).unflatten(2, like.shape[2:])


class GlobalContext(nn.Module):
    """Gate of the channels from one attention-pooled vector of the whole image.

    Context and two-layer bottleneck as in GCNet (Cao et al., arXiv:1904.11492); their result gates
    the channels instead of being added, as in squeeze and excitation.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)  # softmax would not see a bias
        self.squeeze = nn.Linear(width, max(4, width // 4))
        self.excite = nn.Linear(self.squeeze.out_features, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: (b, width, h, w) -> gate (b, width, 1, 1) in (0, 1)."""
        pixels = as_pixels(x)
        attention = self.score(pixels).softmax(dim=1)  # (b, h w, 1)
        context = (attention.transpose(1, 2) @ pixels)[:, 0]
        gate = self.excite(functional.silu(self.squeeze(context)))
        return gate.sigmoid()[:, :, None, None]


class ResBlock(nn.Module):
    """Two convolutions; the condition scales and shifts the second norm (BigGAN style)."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        cond_dim: int,
        dropout: float,
        global_context: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.scale_shift = nn.Linear(cond_dim, 2 * width_out)
        self.norm2 = group_norm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(width_out, width_out, 3, padding=1))
        same = width_in == width_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)
        self.context = GlobalContext(width_out) if global_context else None

    def forward(
        self, x: torch.Tensor, cond: torch.Tensor, skip: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`x`: (b, width_in, h, w); `cond`: (b, cond_dim) -> (b, width_out, h, w).

        `skip`: a skip connection, which is scaled and joined to `x` and counts in `width_in`.
        """
        if skip is not None:
            x = torch.cat([x, skip * SKIP_SCALE], dim=1)
        reuse = not torch.is_grad_enabled()  # activations are kept for a backward pass only
        h = self.conv1(functional.silu(self.norm1(x), inplace=reuse))
        scale, shift = self.scale_shift(cond)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale), inplace=reuse)
        h = self.conv2(self.dropout(h))
        if self.context is not None:
            h = h * self.context(h)
        return h.add_(self.shortcut(x))  # neither convolution nor product keeps its output
