"""Convolutions of several kernel sizes, and the ways down and up between two resolutions."""

import torch
from torch import nn
from torch.nn import functional

from imagen.network.config import Upsampling, kernel_widths


class MultiKernel(nn.Module):
    """Convolutions of several kernel sizes side by side, which share the output channels."""

    def __init__(
        self, width_in: int, width_out: int, kernels: tuple[int, ...], stride: int, bias: bool
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            convolution(width_in, width, (kernel,), stride, bias)
            for kernel, width in zip(kernels, kernel_widths(width_out, kernels), strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width_in, h, w) -> (b, width_out, h/stride, w/stride)."""
        return torch.cat([conv(x) for conv in self.convs], dim=1)


def convolution(
    width_in: int, width_out: int, kernels: tuple[int, ...], stride: int = 1, bias: bool = True
) -> nn.Module:
    """Return a convolution that divides height and width by exactly `stride`."""
    kernel, *others = kernels
    if others:
        return MultiKernel(width_in, width_out, kernels, stride, bias)
    return nn.Conv2d(width_in, width_out, kernel, stride, (kernel - 1) // 2, bias=bias)


class Downsample(nn.Module):
    """Halve height and width with a strided convolution."""

    def __init__(self, width_in: int, width_out: int, kernels: tuple[int, ...] = (3,)) -> None:
        super().__init__()
        self.conv = convolution(width_in, width_out, kernels, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width_in, h, w) -> (b, width_out, h/2, w/2)."""
        return self.conv(x)


class NearestUpsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width_in, h, w) -> (b, width_out, 2h, 2w)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class PixelShuffle(nn.Module):
    """Double height and width: a 1x1 convolution makes the four pixels that each pixel becomes.

    The four start equal (ICNR, Aitken et al., arXiv:1707.02937), as if by nearest neighbour, so
    that nothing looks like a checkerboard.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, 4 * width_out, 1)
        with torch.no_grad():
            for parameter in self.conv.parameters():
                parameter[width_out:] = parameter[:width_out].repeat(3, *[1] * (parameter.ndim - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width_in, h, w) -> (b, width_out, 2h, 2w)."""
        # channels last: (b, h, w, 2 2 c) -> (b, h 2, w 2, c); functional.pixel_shuffle would leave
        # channels-last on GPUs
        rows = self.conv(x).permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).transpose(2, 3)
        return rows.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def upsample(kind: Upsampling, width_in: int, width_out: int) -> NearestUpsample | PixelShuffle:
    """Return the layer that doubles height and width in the given way."""
    return (PixelShuffle if kind == "pixel_shuffle" else NearestUpsample)(width_in, width_out)
