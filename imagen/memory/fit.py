"""What a card can train: the largest microbatch by precision, optimizer and checkpointing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.memory.estimate import Curve, training_curve, training_fixed
from imagen.memory.usage import Optimizer, Precision, Setting

MOST_IMAGES = 4096
"""No larger microbatch is looked for."""
_SHARE, _CONTEXT = 0.9, 2**29


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The largest microbatch of one way to train a member."""

    precision: Precision
    """Of the matrix products."""
    checkpointed: bool
    """Whether all levels are computed again in the backward pass."""
    optimizer: Optimizer
    """Optimizer."""
    images: int
    """Largest microbatch; 0 = not even one image fits."""


def usable(card_gb: float) -> int:
    """Return the bytes of a card that tensors may take. Cards are sold in GB of 2^30 bytes.

    Nine tenths, for fragmentation and the workspaces of convolutions, less half a GB, for the
    driver's context. Raises ConfigError.
    """
    if not 1 <= card_gb <= 1024:
        raise ConfigError(f"a card of {card_gb:g} GB is not in [1, 1024]", "for example 12, 24, 80")
    return int(_SHARE * card_gb * 2**30) - _CONTEXT


def largest(curve: Curve, num_bytes: int) -> int:
    """Return the most images, up to `MOST_IMAGES`, that stay within `num_bytes`; 0 = none."""
    if curve.at(1).total > num_bytes:
        return 0
    fits, too_many = 1, MOST_IMAGES + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if curve.at(middle).total <= num_bytes:
            fits = middle
        else:
            too_many = middle
    return fits


def ways(config: MemberConfig, setting: Setting) -> Iterator[Setting]:
    """Yield the settings that a member can be trained with, cheapest in time first."""
    levels = tuple(range(len(config.network.widths)))
    for checkpoint_levels in ((), levels):
        for precision in reversed(get_args(Precision)):
            for optimizer in get_args(Optimizer):
                yield replace(
                    setting,
                    precision=precision,
                    optimizer=optimizer,
                    checkpoint_levels=checkpoint_levels,
                )


def fit(config: MemberConfig, setting: Setting, card_gb: float) -> Fit:
    """Return the largest microbatch of one way to train on a card. Raises ConfigError."""
    room = usable(card_gb)
    hopeless = training_fixed(config, setting.optimizer).fixed > room  # spares the runs
    return Fit(
        precision=setting.precision,
        checkpointed=bool(setting.checkpoint_levels),
        optimizer=setting.optimizer,
        images=0 if hopeless else largest(training_curve(config, setting), room),
    )
