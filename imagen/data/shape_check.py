"""Measure what a picture of coloured shapes shows, and compare it with what its caption says.

No learning: things are connected bright areas; a thing's colour is that of its core, its shape the
outline that covers it best, its size and place those of its bounding box. So a generated picture
can be judged attribute by attribute.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from imagen.data.shapes import COLOURS, RADII, SHAPES, Scene, Thing, outline

_BRIGHT = 112
"""Of the brightest channel: near half of the 255 that every colour has in one."""
_SMALLEST = 0.004
"""Share of the picture: what is smaller is no thing."""
_MOST = 6
"""Things beyond this number are not told apart."""
_FINER = 4


@dataclass(frozen=True, slots=True)
class Found:
    """A thing in a picture; its box in shares of the picture's sides."""

    thing: Thing
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Which attributes of a picture are as its caption says.

    Colour, shape and size are compared as collections; `binding` asks that each thing has its own
    colour, shape and size at once.
    """

    count: bool
    colour: bool
    shape: bool
    size: bool
    binding: bool
    relation: bool | None
    """None: the caption says none."""

    @property
    def all_right(self) -> bool:
        """Tell whether nothing is wrong."""
        return self.count and self.binding and self.relation is not False


def check(image: npt.NDArray[np.uint8] | Image.Image, scene: Scene) -> Verdicts:
    """Return what of a scene an RGB picture, uint8 (h, w, 3) or of Pillow, shows right."""
    return compare(find(image), scene)


def compare(found: list[Found], scene: Scene) -> Verdicts:
    """Return what of a scene the things that were found in a picture show right."""
    wanted = scene.things
    seen = [f.thing for f in found]

    def same(attribute: str) -> bool:
        values = (Counter(getattr(t, attribute) for t in things) for things in (seen, wanted))
        return next(values) == next(values)

    return Verdicts(
        count=len(found) == len(wanted),
        colour=same("colour"),
        shape=same("shape"),
        size=same("size"),
        binding=Counter(seen) == Counter(wanted),
        relation=None if scene.relation is None else _related(found, scene),
    )


def _related(found: list[Found], scene: Scene) -> bool:
    """Tell whether the two things that fit the scene best stand as it says."""
    pairs = list(permutations(found[:_MOST], 2))
    if not pairs:
        return False
    first, second = max(pairs, key=lambda pair: _likeness(pair, scene))
    dx, dy = second.x - first.x, second.y - first.y
    along, across = (dx, dy) if scene.relation == "left of" else (dy, dx)
    return along > abs(across)


def _likeness(pair: tuple[Found, ...], scene: Scene) -> int:
    """Count the attributes that two things share with those of a scene, colour before shape."""
    weights = (("colour", 4), ("shape", 2), ("size", 1))
    return sum(
        weight * (getattr(found.thing, name) == getattr(wanted, name))
        for found, wanted in zip(pair, scene.things, strict=True)
        for name, weight in weights
    )


def find(image: npt.NDArray[np.uint8] | Image.Image) -> list[Found]:
    """Return the things in an RGB picture, the largest first."""
    from scipy import ndimage

    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    light = pixels.max(axis=2)
    labels = np.empty(light.shape, np.int32)
    if ndimage.label(light >= _BRIGHT, output=labels) == 0:
        return []
    areas = np.bincount(labels.ravel())[1:]
    large = [i for i in np.argsort(-areas, kind="stable") if areas[i] >= _SMALLEST * light.size]
    boxes = ndimage.find_objects(labels)
    return [_measure(pixels, labels == i + 1, boxes[i]) for i in large]


def _measure(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], box: tuple[slice, ...]
) -> Found:
    (height, width), (rows, columns) = mask.shape, box
    side = max((rows.stop - rows.start) / height, (columns.stop - columns.start) / width)
    thing = Thing(_size(side), _colour(pixels[box], mask[box]), _shape(pixels, mask, box))
    x, y = (columns.start + columns.stop) / (2 * width), (rows.start + rows.stop) / (2 * height)
    return Found(thing, x, y)


def _size(side: float) -> str:
    """Return the size whose range of sides is nearer."""
    small, large = RADII["small"][1], RADII["large"][0]
    return "small" if side < small + large else "large"


def _colour(pixels: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]) -> str:
    """Return the colour nearest to the median of the core, which blurred edges do not reach."""
    from scipy import ndimage

    core = np.asarray(ndimage.binary_erosion(inside), np.bool_)
    seen = np.median(pixels[core if core.sum() >= 4 else inside], axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(seen - COLOURS[name]).sum()))


def _shape(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], box: tuple[slice, ...]
) -> str:
    """Return the shape that shares most with the thing, relative to what either covers."""
    inside = _finer(pixels, mask, box)

    def overlap(shape: str) -> float:
        cover = _template(shape, *inside.shape)
        return float((cover & inside).sum() / (cover | inside).sum())

    return max(SHAPES, key=overlap)


def _finer(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], box: tuple[slice, ...]
) -> npt.NDArray[np.bool_]:
    """Return what a thing covers of its box, in finer pixels: its soft edge tells where it ends."""
    from scipy import ndimage

    padded = tuple(slice(max(0, part.start - 2), part.stop + 2) for part in box)
    near = ndimage.binary_dilation(mask[padded], np.ones((3, 3)))
    light = np.where(near, pixels[padded].max(axis=2), 0).astype(np.uint8)
    height, width = light.shape
    large = Image.fromarray(light).resize(
        (width * _FINER, height * _FINER), Image.Resampling.BICUBIC
    )
    inside = np.asarray(large) >= 128
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=4096)
def _template(shape: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of a box that a shape covers which fills the box."""
    image = Image.new("1", (width, height))
    outline(ImageDraw.Draw(image), shape, (width / 2, height / 2), (width / 2, height / 2), 1)
    return np.asarray(image)
