"""Editing: what is given of a picture, and what it is to the members of a cascade.

One rule covers all: each member from `first` on starts at the noise level of time `strength`, from
the picture at its own size; below 1 that is image-to-image and variation. With a mask, what is
outside of it enters again at each noise level (RePaint). `first` beyond the base upscales: its
low-resolution input is the picture at the size of the member before. Pictures are never enlarged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from imagen import photo
from imagen.checks import check_range, check_type, spread
from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.network.unet import resize
from imagen.photo import Photo

if TYPE_CHECKING:
    from imagen.cascade import Cascade

BASE = "base"
"""The member that draws from text alone."""
STRENGTH = 0.6
"""Strength of an edit of a whole picture, when none is given."""
RESAMPLE = 4
"""Times that each step of a masked edit is taken, when no number is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A picture to start from, and what of it may change."""

    image: torch.Tensor
    """(b or 1, c, h, w) float in [-1, 1], of the members' aspect ratio; 1 row is for all images."""
    mask: torch.Tensor | None = None
    """(b or 1, 1, h, w), 1 or True = paint anew, 0 = keep as it is; None: all may change."""
    strength: float | None = None
    """How far back to noise members start, in (0, 1]: 1 from noise alone, near 0 from the image.

    None: 1 with a mask or beyond the base, else 0.6.
    """
    first: str = BASE
    """Member to start at; a later one takes the image as its low-resolution input."""
    resample: int | None = None
    """Times that each step of a masked edit is taken: more fit better what is painted; None: 4."""

    def __post_init__(self) -> None:
        check_range("edit.image", self.image)
        if self.image.ndim != 4:
            raise ConfigError(f"edit.image is {tuple(self.image.shape)}, not (b, c, h, w)")
        check_type("edit.first", self.first, str, "a member's name")
        self._check_strength()
        if self.mask is not None:
            _check_mask(self.mask, self.image, self.first)
        if self.resample is not None:
            self._check_resample(self.resample)

    def _check_strength(self) -> None:
        if self.strength is not None:
            check_type("edit.strength", self.strength, Real, "a number")
        if not 0 < self.start <= 1:
            raise ConfigError(
                f"edit.strength {self.strength} is not in (0, 1]",
                "1 starts from noise alone, 0.3 changes details",
            )
        if self.start == 1 and self.mask is None and self.first == BASE:
            raise ConfigError(
                f"edit.strength {self.strength} without a mask starts from noise alone: the "
                "picture would have no effect",
                f"{STRENGTH} draws it again, 0.3 changes details; or give a mask",
            )

    def _check_resample(self, resample: int) -> None:
        check_type("edit.resample", resample, Integral, "a whole number")
        if resample < 1:
            raise ConfigError(f"edit.resample {resample} is less than 1")
        if self.mask is None:
            raise ConfigError(
                f"edit.resample {resample} has no effect: the edit has no mask",
                "leave it out, or give a mask",
            )

    @property
    def start(self) -> float:
        """Time in (0, 1] that members start at: `strength`, or its default."""
        return _start(self.strength, self.mask is not None, self.first)

    @property
    def rounds(self) -> int:
        """Times that each step of a masked edit is taken: `resample`, or its default."""
        return RESAMPLE if self.resample is None else self.resample

    @classmethod
    def open(
        cls,
        path: str,
        cascade: "Cascade | Mapping[str, MemberConfig]",
        mask: str | None = None,
        strength: float | None = None,
        first: str = BASE,
        last: str | None = None,
    ) -> "Edit":
        """Return the edit of a picture file (path or URL), for a cascade or its members.

        The picture is turned upright, laid on white, cut to the centre of the members' shape and
        scaled down to the size that sampling from `first` to `last` (None: the last member) needs.
        `mask`: a picture as large, white = paint anew. Raises ConfigError.
        """
        members = cascade if isinstance(cascade, Mapping) else cascade.configs
        masking = None if mask is None else photo.read(mask)
        return of_photos((photo.read(path), masking), members, strength, first, last)


def of_photos(
    photos: tuple[Photo, Photo | None],
    members: Mapping[str, MemberConfig],
    strength: float | None = None,
    first: str = BASE,
    last: str | None = None,
) -> Edit:
    """Return the edit of a picture and its mask (or None) that were read, as `Edit.open` does."""
    picture, masking = photos
    _check_member("edit.first", first, members)
    if last is not None:
        _check_member("last", last, members)
    _, shape = _needs(members, first, last, _start(strength, masking is not None, first))
    return Edit(
        image=photo.image(picture, shape, members[first].network.channels),
        mask=None if masking is None else photo.mask(masking, picture, shape),
        strength=strength,
        first=first,
    )


def _start(strength: float | None, masked: bool, first: str) -> float:
    if strength is not None:
        return strength
    return 1.0 if masked or first != BASE else STRENGTH


def _needs(
    members: Mapping[str, MemberConfig], first: str, last: str | None, start: float
) -> tuple[str, tuple[int, int]]:
    """Return the member that decides how large a picture has to be, and its (h, w).

    Of an upscale from noise alone only the low-resolution input is the picture.
    """
    names = list(members)
    at = names.index(first)
    name = names[at - 1] if at > 0 and start == 1 else last or names[-1]
    return name, members[name].shape


def _check_member(what: str, name: str, members: Mapping[str, MemberConfig]) -> None:
    if name not in members:
        raise ConfigError(
            f"{what} {name!r} is no member of the cascade", f"members: {', '.join(members)}"
        )


def _check_mask(mask: torch.Tensor, image: torch.Tensor, first: str) -> None:
    check_type("edit.mask", mask, torch.Tensor, "a torch tensor")
    if first != BASE:
        raise ConfigError(
            f"edit.mask with edit.first {first!r}: what is to be painted anew would be seen in the "
            "low-resolution input",
            "masked edits start at the base: leave `first` out",
        )
    b, _, h, w = image.shape
    shape = tuple(mask.shape)
    if mask.ndim != 4 or shape[1:] != (1, h, w) or (shape[0] != 1 and b not in (1, shape[0])):
        raise ConfigError(
            f"edit.mask is {shape}, not ({b}, 1, {h}, {w})",
            "one row an image or one for all, one channel, the image's size",
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ConfigError(
            f"edit.mask has {spread(mask)}, each is 0 or 1",
            "1 = paint anew, 0 = keep: threshold it, for example mask > 0.5",
        )
    empty = (mask == 0).flatten(1).all(dim=1).nonzero().flatten().tolist()
    if empty:
        raise ConfigError(
            f"edit.mask is 0 everywhere in row {empty[0]}: nothing would be painted",
            "1 = paint anew, 0 = keep",
        )


@dataclass(frozen=True, slots=True)
class Canvas:
    """An edit at one member: picture (b, c, h, w) and mask (b, 1, h, w), True = paint anew."""

    image: torch.Tensor
    mask: torch.Tensor | None
    start: float
    resample: int


def check(edit: Edit, members: Mapping[str, MemberConfig], count: int) -> None:
    """Raise ConfigError unless `edit` fits the members of a cascade and `count` images."""
    _check_member("edit.first", edit.first, members)
    for name, value in (("image", edit.image), ("mask", edit.mask)):
        if value is not None and len(value) not in (1, count):
            raise ConfigError(f"edit.{name} has {len(value)} rows for {count} images")
    channels, (h, w) = edit.image.shape[1], edit.image.shape[2:]
    for name, member in members.items():
        height, width = member.shape
        if channels != member.network.channels:
            raise ConfigError(
                f"edit.image has {channels} channels, member {name} {member.network.channels}"
            )
        if h * width != w * height:
            raise ConfigError(
                f"edit.image is {h} x {w} pixels, member {name} draws {height} x {width}",
                "crop the image to this aspect ratio",
            )


def check_size(edit: Edit, members: Mapping[str, MemberConfig], last: str | None) -> None:
    """Raise ConfigError when the picture is smaller than what members up to `last` make of it."""
    name, (height, width) = _needs(members, edit.first, last, edit.start)
    h, w = edit.image.shape[2:]
    if h < height or w < width:
        raise ConfigError(
            f"edit.image is {h} x {w} pixels, smaller than the {height} x {width} of member {name}",
            "pictures are never enlarged: give a larger one, or stop at a smaller member "
            "(options.last)",
        )


def canvas(edit: Edit, shape: tuple[int, int], count: int, device: torch.device) -> Canvas:
    """Return the edit at a member's `shape` (h, w), one row for each of `count` images."""
    image = given_at(edit, shape, count, device)
    mask = None
    if edit.mask is not None:
        # a pixel that covers any part to paint is painted: nothing of it shines through
        mask = functional.adaptive_max_pool2d(edit.mask.to(device).float(), shape) > 0
        mask = mask.expand(count, -1, -1, -1)
    return Canvas(image, mask, edit.start, edit.rounds)


def given_at(edit: Edit, shape: tuple[int, int], count: int, device: torch.device) -> torch.Tensor:
    """Return the given picture (count, c, h, w) float32 at `shape` (h, w)."""
    image = resize(edit.image.to(device).float(), shape)
    return image.expand(count, -1, -1, -1)
