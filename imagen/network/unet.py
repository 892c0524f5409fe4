"""The two U-Nets of a cascade, after Imagen (Saharia et al., arXiv:2205.11487, App. B and F).

`base` works at full resolution first and halves after each level. `efficient` (super-resolution)
halves before a level's blocks and doubles after them, so that nearly all work is done at low
resolution; it also sees the low-resolution image. Both scale skip connections by 1/sqrt(2).
Networks know nothing of schedules or noise: they map inputs to one image-shaped output.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from imagen.errors import ConfigError
from imagen.network.attention import Attentions
from imagen.network.blocks import ResBlock, group_norm, zero_init
from imagen.network.checks import check
from imagen.network.conditioning import Conditioning
from imagen.network.conditions import Conditions
from imagen.network.config import UNetConfig
from imagen.network.levels import CombineLevels, DownLevel, UpLevel, res_block, run
from imagen.network.resample import convolution

RECOMPILE_LIMIT = 64
"""Shapes for which `torch.compile` may compile one kind of block before it gives up."""


class UNet(nn.Module):
    """A U-Net conditioned on time and on what its config names: text, images, a class."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        width, deepest = config.widths[0], config.widths[-1]
        levels = range(len(config.widths))
        self.conditioning = Conditioning(config)
        # convolutions added, never one over joined channels: see browser traps in DESIGN.md
        self.stem = self._stem(config.channels)
        self.stem_lowres = self._stem(config.channels) if config.kind == "efficient" else None
        # without bias, so that no estimate is the same as an estimate of zero
        previous = config.self_conditioning
        self.stem_x0_previous = self._stem(config.channels, bias=False) if previous else None
        self.stem_image = self._stem(config.image_channels) if config.image_channels else None
        self.down = nn.ModuleList(DownLevel(config, i) for i in levels)
        self.middle = res_block(config, deepest, deepest)
        middle = config.middle_attention
        self.middle_attention = Attentions(config, deepest, ["self"]) if middle else None
        self.up = nn.ModuleList(UpLevel(config, i) for i in levels)  # up.i mirrors down.i
        self.combine = CombineLevels(config) if config.combine_levels else None
        # `efficient` has no other conditioned layer at full resolution, where noise must be removed
        self.final = res_block(config, 2 * width, width)
        self.out_norm = group_norm(width)
        self.out = zero_init(nn.Conv2d(width, config.channels, 3, padding=1))

    def _stem(self, channels: int, bias: bool = True) -> nn.Module:
        return convolution(channels, self.config.widths[0], self.config.stem_kernels, bias=bias)

    def forward(self, x: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Return the prediction (b, c, h, w), shaped as `x`.

        Raises ConfigError where `x` or a condition does not fit the config.
        """
        check(self.config, x, conditions)
        cond, text, bias = self.conditioning(conditions)
        x = stem = self._enter(x, conditions)
        skips, outputs = [], []
        for down in self.down:
            x, level_skips = down(x, cond, text, bias)
            skips.append(level_skips)
        x = self.middle(x, cond)
        if self.middle_attention is not None:
            x = self.middle_attention(x, text, bias)
        for up in reversed(self.up):
            x = up(x, skips.pop(), cond, text, bias)
            if self.combine is not None:  # else nothing keeps the finer levels alive
                outputs.append(x)
        if self.combine is not None:
            x = self.combine(outputs)
        x = run(self.recompute, self.final, x, cond, stem)
        return self.out(functional.silu(self.out_norm(x)))

    def _enter(self, x: torch.Tensor, given: Conditions) -> torch.Tensor:
        """Return the sum of the stems (b, width, h, w), channels-last, in the weights' type."""
        shape, dtype = x.shape[2:], self.out.weight.dtype
        x = self.stem(x.to(dtype).contiguous(memory_format=torch.channels_last))
        if self.stem_lowres is not None and given.lowres is not None:
            x = x + self.stem_lowres(given.lowres.to(dtype))
        if self.stem_x0_previous is not None and given.x0_previous is not None:
            x = x + self.stem_x0_previous(given.x0_previous.to(dtype))
        if self.stem_image is not None and given.image is not None:
            x = x + self.stem_image(resize(given.image.float(), shape).to(dtype))
        return x

    def checkpoint_levels(self, levels: Sequence[int]) -> None:
        """Recompute these levels in the backward pass; 0, the finest, includes the last block.

        Same outputs and gradients, less memory, more time. Levels that are not named keep their
        activations. Raises ConfigError for a level that the network has not.
        """
        for level in levels:
            if not 0 <= level < len(self.down):
                raise ConfigError(f"level {level} is none of 0 … {len(self.down) - 1}")
        self.recompute = 0 in levels
        for module in self.modules():
            if isinstance(module, DownLevel | UpLevel):
                module.recompute = module.level in levels

    def compile_blocks(self, **options: Any) -> None:
        """Compile residual blocks and attentions in place (`torch.compile` with these options).

        Regional: blocks of one shape share their code, and the state dict stays as it is. Residual
        blocks are compiled for each shape by default, attentions for any number of tokens.
        """
        # one kind of block has as many shapes as there are levels, twice, and the default is 8
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
        for name, module in self.named_modules():
            if isinstance(module, ResBlock):
                module.compile(**{"dynamic": False} | options)
            elif isinstance(module, Attentions) and module.kinds and not name.endswith("deeper"):
                module.compile(**options)  # with the layers that follow inside


def resize(image: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resize an image (b, c, H, W) to (height, width): bilinear, antialiased when it shrinks."""
    if tuple(image.shape[2:]) == tuple(shape):
        return image
    return functional.interpolate(
        image, size=tuple(shape), mode="bilinear", antialias=True, align_corners=False
    )


def build(config: UNetConfig) -> UNet:
    """Return a freshly initialised network (torch's global generator decides its weights).

    Its convolutions are channels-last: faster on CPUs for the larger members
    (benchmarks/STEP_EPYC2_202611.md), and what GPUs want.
    """
    return UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
