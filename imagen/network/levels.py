"""One resolution of a U-Net, on the way down and on the way up."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from imagen.network.attention import Attentions
from imagen.network.blocks import ResBlock, zero_init
from imagen.network.config import UNetConfig
from imagen.network.resample import Downsample, upsample


def run(recompute: bool, part: nn.Module, *args: Any) -> Any:
    """Return `part(*args)`; `recompute`: keep its inputs only, and run it again in the backward."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(part, *args, use_reentrant=False)
    return part(*args)


def res_block(config: UNetConfig, width_in: int, width_out: int) -> ResBlock:
    """Return a residual block with the options of a network."""
    return ResBlock(width_in, width_out, config.cond_dim, config.dropout, config.global_context)


def level_attentions(config: UNetConfig, level: int) -> Attentions:
    """Return the attention that ends a level."""
    flags = (config.self_attention, config.linear_levels, config.cross_attention)
    kinds = [k for k, f in zip(("self", "linear", "cross"), flags, strict=True) if f[level]]
    return Attentions(config, config.widths[level], kinds)


class DownLevel(nn.Module):
    """Residual blocks and attention at one resolution, on the way down."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        self.level, self.recompute = level, False
        width, first = config.widths[level], config.widths[max(0, level - 1)]
        halves = config.kind == "efficient" or level > 0
        self.resample = Downsample(first, width, config.downsample_kernels) if halves else None
        self.blocks = nn.ModuleList(
            res_block(config, width, width) for _ in range(config.blocks[level])
        )
        self.attentions = level_attentions(config, level)

    def forward(
        self,
        x: torch.Tensor,
        cond: torch.Tensor,
        text: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the level's output and one skip for each block."""
        if self.resample is not None:
            x = self.resample(x)
        skips = []
        for block in self.blocks:
            x = run(self.recompute, block, x, cond)
            skips.append(x)
        x = run(self.recompute, self.attentions, x, text, bias)
        skips[-1] = x
        return x, skips


class UpLevel(nn.Module):
    """Residual blocks that take the skips, attention, and the way up to the level above."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        self.level, self.recompute = level, False
        width, above = config.widths[level], config.widths[max(0, level - 1)]
        self.blocks = nn.ModuleList(
            res_block(config, 2 * width, width) for _ in range(config.blocks[level])
        )
        self.attentions = level_attentions(config, level)
        doubles = config.kind == "efficient" or level > 0
        self.resample = upsample(config.upsample, width, above) if doubles else None

    def forward(
        self,
        x: torch.Tensor,
        skips: list[torch.Tensor],
        cond: torch.Tensor,
        text: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Consume one skip for each block, deepest first."""
        for block in self.blocks:
            x = run(self.recompute, block, x, cond, skips.pop())
        x = run(self.recompute, self.attentions, x, text, bias)
        return x if self.resample is None else run(self.recompute, self.resample, x)


class CombineLevels(nn.Module):
    """Add every level's output to the last one: projected where it is small, then upsampled."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        deeper = config.widths[-2::-1]  # what the levels hand up, the deepest first
        self.projections = nn.ModuleList(
            zero_init(nn.Conv2d(width, config.widths[0], 1)) for width in deeper
        )

    def forward(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """`outputs`: of every level on the way up, deepest first -> like the last of them."""
        *deeper, last = outputs
        total = None
        for projection, output in zip(self.projections, deeper, strict=True):
            part = projection(output)
            total = part if total is None else part + _resize(total, output)
        return last if total is None else last + _resize(total, last)


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return functional.interpolate(x, size=like.shape[2:], mode="nearest")
