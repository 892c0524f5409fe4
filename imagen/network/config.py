"""What a U-Net is made of, checked before anything is built."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from imagen.errors import ConfigError

Kind = Literal["base", "efficient"]
Upsampling = Literal["nearest", "pixel_shuffle"]


def num_groups(width: int) -> int:
    """Return the groups of a norm: at least 4 channels in each, at most 32 groups."""
    return max(1, min(32, width // 4))


def pool_heads(cond_dim: int) -> int:
    """Return the heads of attention among text tokens, of about 64 channels each."""
    return max(1, cond_dim // 64)


def kernel_widths(width: int, kernels: tuple[int, ...]) -> list[int]:
    """Return the output channels of each kernel: a half, a quarter, …, the rest to the last."""
    widths = [width >> i for i in range(1, len(kernels))]
    return [*widths, width - sum(widths)]


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """Architecture of one U-Net; tuples have one entry a level, highest resolution first."""

    kind: Kind
    """`base`, or `efficient` for super-resolution members."""
    channels: int = 3
    """Channels of the image."""
    widths: tuple[int, ...]
    """Feature channels of each level."""
    blocks: tuple[int, ...]
    """Residual blocks of each level, on the way down and again on the way up."""
    self_attention: tuple[bool, ...]
    """Whether a level ends in self-attention."""
    cross_attention: tuple[bool, ...]
    """Whether a level ends in cross-attention to the text."""
    text_dim: int
    """Width of the text encoder's embeddings; 0 = no text."""
    cond_dim: int
    """Width of the conditioning vector and of the projected text tokens."""
    head_dim: int = 64
    """Channels of one attention head."""
    dropout: float = 0.0
    """Dropout in the residual blocks."""
    text_in_self_attention: bool = True
    """Join the text's keys and values to those of self-attention, as Imagen does."""
    linear_attention: tuple[bool, ...] = ()
    """Whether a level without self-attention ends in linear attention; () = no level."""
    middle_attention: bool = False
    """Self-attention after the block at the lowest resolution."""
    attention_depth: int = 1
    """Attention layers, one after the other, wherever there is attention."""
    feed_forward: int = 0
    """Hidden width of a feed-forward after each attention layer, in widths; 0 = none."""
    global_context: bool = False
    """Gate the channels of each residual block by a pooled context of the whole image."""
    stem_kernels: tuple[int, ...] = (3,)
    """Kernel sizes of the first convolution, which share its output channels; odd."""
    downsample_kernels: tuple[int, ...] = (3,)
    """Kernel sizes of the strided convolutions, which share their output channels."""
    upsample: Upsampling = "nearest"
    """Double by nearest neighbour and a 3x3 convolution, or by a 1x1 one and pixel shuffle."""
    combine_levels: bool = False
    """Let the last block see the output of every level of the way up."""
    text_latents: int = 0
    """Attention sees this many latents that a Perceiver resampler makes of the text; 0 = tokens."""
    self_conditioning: bool = False
    """Take the previous estimate of x0 as an input."""
    image_channels: int = 0
    """Channels of a conditioning image; 0 = none."""
    num_classes: int = 0
    """Class labels; 0 = none."""

    def __post_init__(self) -> None:
        self._check_levels()
        self._check_numbers()
        self._check_kernels()
        self._check_effects()
        for level in range(len(self.widths)):
            self._check_width(level)

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return 2 ** (len(self.widths) - (self.kind == "base"))

    @property
    def linear_levels(self) -> tuple[bool, ...]:
        """`linear_attention` with one entry a level."""
        return self.linear_attention or (False,) * len(self.widths)

    def _attends(self, level: int) -> bool:
        middle = self.middle_attention and level == len(self.widths) - 1
        flags = (self.self_attention, self.cross_attention, self.linear_levels)
        return middle or any(flag[level] for flag in flags)

    def _check_levels(self) -> None:
        levels = len(self.widths)
        tuples = ["blocks", "self_attention", "cross_attention"]
        tuples += ["linear_attention"] if self.linear_attention else []
        for key in tuples:
            if len(getattr(self, key)) != levels:
                raise ConfigError(
                    f"{key} has {len(getattr(self, key))} entries, widths has {levels}",
                    "give one entry for each level",
                )
        if not levels or min(self.blocks) < 1:
            raise ConfigError("a U-Net needs at least one level and one block in each")

    def _check_numbers(self) -> None:
        for key, allowed in (("kind", get_args(Kind)), ("upsample", get_args(Upsampling))):
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"{key} {getattr(self, key)!r} is neither {allowed[0]} nor {allowed[1]}"
                )
        for least, keys in (
            (1, ("channels", "cond_dim", "head_dim", "attention_depth")),
            (0, ("text_dim", "feed_forward", "text_latents", "image_channels", "num_classes")),
        ):
            for key in keys:
                if getattr(self, key) < least:
                    raise ConfigError(f"{key} {getattr(self, key)} is less than {least}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout} is not in [0, 1)")
        if self.text_dim and self.cond_dim % pool_heads(self.cond_dim):
            raise ConfigError(
                f"cond_dim {self.cond_dim} cannot be cut into {pool_heads(self.cond_dim)} heads",
                "use a multiple of 64",
            )

    def _check_kernels(self) -> None:
        for key in ("stem_kernels", "downsample_kernels"):
            kernels = getattr(self, key)
            narrowest = self.widths[0] if key == "stem_kernels" else min(self.widths)
            if not kernels or min(kernels) < 1 + (key == "downsample_kernels"):
                raise ConfigError(f"{key} {kernels} has no kernel, or one that is too small")
            if min(kernel_widths(narrowest, kernels)) < 1:
                raise ConfigError(f"{key} {kernels} are too many for {narrowest} channels")
        if any(kernel % 2 == 0 for kernel in self.stem_kernels):
            raise ConfigError(f"stem_kernels {self.stem_kernels} are not all odd")

    def _check_effects(self) -> None:
        """Refuse options that would do nothing."""
        for message in self._idle():
            raise ConfigError(message, "leave the option out, or give what it works on")

    def _idle(self) -> Iterator[str]:
        levels = range(len(self.widths))
        within = any((self.middle_attention, *self.self_attention, *self.linear_levels))
        joins = self.text_in_self_attention and within
        if any(
            both := [s and n for s, n in zip(self.self_attention, self.linear_levels, strict=True)]
        ):
            yield f"linear_attention at level {both.index(True)}, which has self_attention already"
        if not self.text_dim and any(self.cross_attention):
            yield "cross_attention without text (text_dim 0)"
        if not self.text_in_self_attention and not (self.text_dim and within):
            yield "text_in_self_attention false without text or without self-attention"
        if self.text_latents and not (self.text_dim and (any(self.cross_attention) or joins)):
            yield f"text_latents {self.text_latents} where no attention sees text"
        if not any(self._attends(level) for level in levels):
            if self.feed_forward:
                yield f"feed_forward {self.feed_forward} without attention"
            if self.attention_depth > 1:
                yield f"attention_depth {self.attention_depth} without attention"
        if len(self.widths) == 1 and self.combine_levels:
            yield "combine_levels with one level"
        if self.factor == 1 and self.upsample != "nearest":
            yield f"upsample {self.upsample} where nothing is upsampled"
        if self.factor == 1 and self.downsample_kernels != (3,):
            yield f"downsample_kernels {self.downsample_kernels} where nothing is downsampled"

    def _check_width(self, level: int) -> None:
        width = self.widths[level]
        if self._attends(level) and width % self.head_dim:
            raise ConfigError(f"width {width} is no multiple of head_dim {self.head_dim}")
        if width < 4 or any(w % num_groups(w) for w in (width, 2 * width)):
            raise ConfigError(
                f"width {width} cannot be cut into groups of equal size for its norms",
                "use a multiple of 4 up to 64, then of 32",
            )
