"""The two U-Nets of a cascade, after Imagen (Saharia et al., arXiv:2205.11487, App. B and F).

`base` works at full resolution first and halves after each level. `efficient` (super-resolution)
halves before a level's blocks and doubles after them, so that nearly all work is done at low
resolution; it also sees the low-resolution image. Both scale skip connections by 1/sqrt(2).
Networks know nothing of schedules or noise: they map inputs to one image-shaped output.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from imagen.errors import ConfigError
from imagen.network.blocks import (
    CrossAttention,
    Downsample,
    ResBlock,
    SelfAttention,
    Upsample,
    group_norm,
    num_groups,
    zero_init,
)
from imagen.network.conditioning import Conditioning, pool_heads

SKIP_SCALE = 2**-0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """Architecture of one U-Net; tuples have one entry a level, highest resolution first."""

    kind: Literal["base", "efficient"]
    """`base`, or `efficient` for super-resolution members."""
    channels: int = 3
    """Channels of the image."""
    widths: tuple[int, ...]
    """Feature channels of each level."""
    blocks: tuple[int, ...]
    """Residual blocks of each level, on the way down and again on the way up."""
    self_attention: tuple[bool, ...]
    """Whether a level ends in self-attention (with text joined)."""
    cross_attention: tuple[bool, ...]
    """Whether a level ends in cross-attention to the text."""
    text_dim: int
    """Width of the text encoder's embeddings."""
    cond_dim: int
    """Width of the conditioning vector and of the projected text tokens."""
    head_dim: int = 64
    """Channels of one attention head."""
    dropout: float = 0.0
    """Dropout in the residual blocks."""

    def __post_init__(self) -> None:
        levels = len(self.widths)
        for key in ("blocks", "self_attention", "cross_attention"):
            if len(getattr(self, key)) != levels:
                raise ConfigError(
                    f"{key} has {len(getattr(self, key))} entries, widths has {levels}",
                    "give one entry for each level",
                )
        if not levels or min(self.blocks) < 1:
            raise ConfigError("a U-Net needs at least one level and one block in each")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels {self.channels} is neither 1 (grey) nor 3 (colour)")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout} is not in [0, 1)")
        for key in ("text_dim", "cond_dim", "head_dim"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} {getattr(self, key)} is less than 1")
        if self.cond_dim % pool_heads(self.cond_dim):
            raise ConfigError(
                f"cond_dim {self.cond_dim} cannot be cut into {pool_heads(self.cond_dim)} heads",
                "use a multiple of 64",
            )
        for level in range(levels):
            self._check_width(level)

    def _check_width(self, level: int) -> None:
        width = self.widths[level]
        attends = self.self_attention[level] or self.cross_attention[level]
        if attends and width % self.head_dim:
            raise ConfigError(f"width {width} is no multiple of head_dim {self.head_dim}")
        if width < 4 or any(w % num_groups(w) for w in (width, 2 * width)):
            raise ConfigError(
                f"width {width} cannot be cut into groups of equal size for its norms",
                "use a multiple of 4 up to 64, then of 32",
            )

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return 2 ** (len(self.widths) - (self.kind == "base"))


class Attentions(nn.Module):
    """The attention that ends a level: self, cross, both or none."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        args = (config.widths[level], config.cond_dim, config.head_dim)
        self.self_attention = SelfAttention(*args) if config.self_attention[level] else None
        self.cross_attention = CrossAttention(*args) if config.cross_attention[level] else None

    def forward(self, x: torch.Tensor, text: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`x`: (b, width, h, w); `text`: (b, l, cond_dim); `bias`: (b, l) -> as `x`."""
        if self.self_attention is not None:
            x = self.self_attention(x, text, bias)
        if self.cross_attention is not None:
            x = self.cross_attention(x, text, bias)
        return x


class DownLevel(nn.Module):
    """Residual blocks and attention at one resolution, on the way down."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width, first = config.widths[level], config.widths[max(0, level - 1)]
        halves = config.kind == "efficient" or level > 0
        self.resample = Downsample(first, width) if halves else None
        self.blocks = nn.ModuleList(
            ResBlock(width, width, config.cond_dim, config.dropout)
            for _ in range(config.blocks[level])
        )
        self.attentions = Attentions(config, level)

    def forward(
        self, x: torch.Tensor, cond: torch.Tensor, text: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the level's output and one skip for each block."""
        if self.resample is not None:
            x = self.resample(x)
        skips = []
        for block in self.blocks:
            x = block(x, cond)
            skips.append(x)
        x = self.attentions(x, text, bias)
        skips[-1] = x
        return x, skips


class UpLevel(nn.Module):
    """Residual blocks that take the skips, attention, and the way up to the level above."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width, above = config.widths[level], config.widths[max(0, level - 1)]
        self.blocks = nn.ModuleList(
            ResBlock(2 * width, width, config.cond_dim, config.dropout)
            for _ in range(config.blocks[level])
        )
        self.attentions = Attentions(config, level)
        doubles = config.kind == "efficient" or level > 0
        self.resample = Upsample(width, above) if doubles else None

    def forward(
        self,
        x: torch.Tensor,
        skips: list[torch.Tensor],
        cond: torch.Tensor,
        text: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """Consume one skip for each block, deepest first."""
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop() * SKIP_SCALE], dim=1), cond)
        x = self.attentions(x, text, bias)
        return x if self.resample is None else self.resample(x)


class UNet(nn.Module):
    """A U-Net conditioned on time, text and, for super-resolution, a low-resolution image."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        lowres, width = config.kind == "efficient", config.widths[0]
        levels = range(len(config.widths))
        self.conditioning = Conditioning(config.text_dim, config.cond_dim, lowres)
        self.stem = nn.Conv2d(config.channels, width, 3, padding=1)
        # two convolutions added, never one over joined channels: see browser traps in DESIGN.md
        self.stem_lowres = nn.Conv2d(config.channels, width, 3, padding=1) if lowres else None
        self.down = nn.ModuleList(DownLevel(config, i) for i in levels)
        deepest = config.widths[-1]
        self.middle = ResBlock(deepest, deepest, config.cond_dim, config.dropout)
        self.up = nn.ModuleList(UpLevel(config, i) for i in levels)  # up.i mirrors down.i
        # `efficient` has no other conditioned layer at full resolution, where noise must be removed
        self.final = ResBlock(2 * width, width, config.cond_dim, config.dropout)
        self.out_norm = group_norm(width)
        self.out = zero_init(nn.Conv2d(width, config.channels, 3, padding=1))

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        text_emb: torch.Tensor,
        text_mask: torch.Tensor,
        keep: torch.Tensor,
        lowres: torch.Tensor | None = None,
        aug: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the prediction, shaped as `x`.

        `x`: (b, c, h, w); `time`: (b, f) features; `text_emb`: (b, l, d); `text_mask`: (b, l), True
        = token; `keep`: (b,) 1 = text, 0 = null text; `lowres`: (b, c, h, w), upsampled, and `aug`:
        (b, f) features of its noise level, for `efficient` only.
        """
        cond, text, bias = self.conditioning(time, text_emb, text_mask, keep, aug)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        if self.stem_lowres is not None:
            assert lowres is not None, "an SR member is given the low-resolution image"
            x = x + self.stem_lowres(lowres)
        stem, skips = x, []
        for down in self.down:
            x, level_skips = down(x, cond, text, bias)
            skips.append(level_skips)
        x = self.middle(x, cond)
        for up in reversed(self.up):
            x = up(x, skips.pop(), cond, text, bias)
        x = self.final(torch.cat([x, stem * SKIP_SCALE], dim=1), cond)
        return self.out(functional.silu(self.out_norm(x)))


def build(config: UNetConfig) -> UNet:
    """Return a freshly initialised network (torch's global generator decides its weights).

    Its convolutions are channels-last: faster on CPUs for the larger members
    (benchmarks/STEP_EPYC2_202611.md), and what GPUs want.
    """
    return UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
