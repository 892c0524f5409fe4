"""The noise levels of a path, step by step, as numbers on the host."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from imagen.diffusion.schedule import alpha_sigma
from imagen.errors import ConfigError


class Level(NamedTuple):
    """A noise level."""

    logsnr: float
    alpha: float
    sigma: float


class Step(NamedTuple):
    """One step of a path: from level `now` to level `then`."""

    i: int
    now: Level
    then: Level
    last: bool


def level(logsnr: float) -> Level:
    """Return the level at a log-SNR, -inf included."""
    alpha, sigma = alpha_sigma(torch.tensor(logsnr, dtype=torch.float64))
    return Level(logsnr, alpha.item(), sigma.item())


def steps(logsnrs: Sequence[float]) -> Iterator[Step]:
    """Yield the steps between rising log-SNRs. Raises ConfigError where they don't rise."""
    if len(logsnrs) < 2 or not all(a < b for a, b in pairwise(logsnrs)):
        raise ConfigError(f"log-SNRs {list(logsnrs)} are not two or more that rise")
    for i, (now, then) in enumerate(pairwise(map(level, logsnrs))):
        yield Step(i, now, then, i == len(logsnrs) - 2)
