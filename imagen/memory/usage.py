"""What memory is asked about, and the answer."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from imagen.errors import ConfigError
from imagen.memory.tracker import Block
from imagen.text.config import TextConfig

Precision = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "adafactor"]
Device = Literal["cuda", "cpu"]

GB = 10**9


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} {value!r} is none of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What runs on the device at a time: for a training step or a sampling step alike."""

    images: int = 1
    """Microbatch of training, or batch of sampling."""
    precision: Precision = "fp32"
    """Of the matrix products, as autocast sets it; weights and optimizer state stay float32."""
    tokens: int = field(default=TextConfig().max_tokens)
    """Text tokens of each image."""
    device: Device = "cuda"
    """Which autocast rules hold: on GPUs norms are computed, and kept, in float32."""
    optimizer: Optimizer = "adamw"
    """Training only."""
    checkpoint_levels: tuple[int, ...] = ()
    """Training only: levels whose activations are computed again in the backward pass."""
    crop_px: int = 0
    """Training only: side of the random crops of a super-resolution member; 0 = whole images."""

    def __post_init__(self) -> None:
        for key, least in (("images", 1), ("tokens", 1), ("crop_px", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key} {getattr(self, key)} is less than {least}")
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("optimizer", self.optimizer, get_args(Optimizer))
        _check_choice("device", self.device, get_args(Device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Bytes of a step at its peak. What the text encoder needs is not in it."""

    parameters: int
    """Number of weights (not bytes)."""
    weights: int
    """Weights, in float32."""
    gradients: int = 0
    """Gradients; they are there all the time, as when several microbatches make a step."""
    optimizer: int = 0
    """State of the optimizer."""
    ema: int = 0
    """Averaged weights."""
    casts: int = 0
    """Copies of the weights in bfloat16, whatever the number of images."""
    activations: int = 0
    """Everything else at the peak of forward and backward pass: activations, the batch, scratch."""
    update: int = 0
    """What the optimizer's step needs for itself, when activations and casts are gone."""
    largest: Block | None = None
    """The largest activation at the peak."""

    @property
    def fixed(self) -> int:
        """Bytes that are there all the time."""
        return self.weights + self.gradients + self.optimizer + self.ema

    @property
    def total(self) -> int:
        """Bytes at the peak of the whole step."""
        return self.fixed + max(self.casts + self.activations, self.update)
