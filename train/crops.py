"""Random crops in super-resolution training: where they lie, and which members can learn from them.

Imagen trains its 256->1024 member on 64->256 crops of the picture (arXiv:2205.11487, Sec. 2.5), and
leaves out its self-attention for that: what the member does at a pixel depends on what is near, and
on the text. Attention between pixels sees as many pixels as there are: trained on crops, it would
meet whole pictures for the first time when sampling. So members that have it are refused here, and
train on whole pictures, as in the paper. (The global context of a block is a mean, which does not
depend on how many pixels there are; it is allowed.)

A crop starts and ends between two low-resolution pixels: its low-resolution picture is a crop, too,
and no pixel of it is made up.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagen.data.randomness import Purpose, uniforms
from imagen.errors import ConfigError
from imagen.member import MemberConfig

Place = tuple[int, int]
Planes = tuple[npt.NDArray[np.uint8], ...]


@dataclass(frozen=True, slots=True)
class Crops:
    """Square crops of `px` pixels of pictures of one shape and of their low-resolution pictures."""

    px: int
    full: tuple[int, int]
    """(height, width) of the whole picture."""
    full_lowres: tuple[int, int]
    """(height, width) of its low-resolution picture, of the same aspect ratio."""

    @property
    def unit(self) -> tuple[int, int]:
        """Fewest pixels of the picture that are whole pixels at low resolution, and how many."""
        divisor = math.gcd(self.full[0], self.full_lowres[0])
        return self.full[0] // divisor, self.full_lowres[0] // divisor

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a crop."""
        return self.px, self.px

    @property
    def lowres(self) -> tuple[int, int]:
        """(height, width) of its low-resolution picture."""
        high, low = self.unit
        return self.px // high * low, self.px // high * low

    def places(self, seed: int, positions: npt.ArrayLike) -> list[Place]:
        """Return where the crop of each sample starts: row and column in units, uniform."""
        rows, columns = ((side - self.px) // self.unit[0] + 1 for side in self.full)
        drawn = uniforms(seed, Purpose.CROP, positions) * (rows * columns)
        return [divmod(int(place), columns) for place in drawn]

    def cut(self, planes: Planes, place: Place) -> Planes:
        """Return the crop of a picture (c, h, w) and of its low-resolution picture."""
        parts = zip(planes, self.unit, (self.px, self.lowres[0]), strict=True)
        starts = [(plane, place[0] * unit, place[1] * unit, side) for plane, unit, side in parts]
        return tuple(plane[:, y : y + side, x : x + side] for plane, y, x, side in starts)


def check(name: str, member: MemberConfig, lowres: tuple[int, int] | None, px: int) -> None:
    """Raise ConfigError unless `member` can be trained on crops of `px` pixels.

    `lowres`: shape of the member before, None for the base.
    """
    told = f"train.{name}.crop_px {px}"
    if lowres is None:
        raise ConfigError(
            f"{told}: {name} draws whole pictures, and a caption does not tell of a part",
            f"set train.{name}.crop_px=0; crops are for super-resolution members",
        )
    attends = _attends(member)
    if attends is not None:
        raise ConfigError(
            f"{told}: {name} has {attends}, which sees as many pixels as there are: trained on "
            "crops it would not know whole pictures",
            f"set train.{name}.crop_px=0, or take {attends} out of members.{name}.network",
        )
    _check_px(told, member, lowres, px)


def _attends(member: MemberConfig) -> str | None:
    """Return the option by which a network attends between pixels, if it does."""
    network = member.network
    if any(network.self_attention):
        return "self_attention"
    if any(network.linear_attention):
        return "linear_attention"
    return "middle_attention" if network.middle_attention else None


def _check_px(told: str, member: MemberConfig, lowres: tuple[int, int], px: int) -> None:
    height, width = member.shape
    if px > min(height, width) or (px, px) == (height, width):
        raise ConfigError(f"{told} cuts nothing out of pictures of {height}x{width} px")
    high, low = Crops(px, member.shape, lowres).unit
    for divisor, why in (
        (member.network.factor, "by which the network shrinks it"),
        (high, f"so that it is whole at low resolution: {high} pixels are {low} there"),
    ):
        if px % divisor:
            multiple = math.lcm(member.network.factor, high)
            raise ConfigError(
                f"{told} is no multiple of {divisor}, {why}", f"use a multiple of {multiple}"
            )
