"""Pictures of an evaluation: labelled grids as files, and small enough to lie in a page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageSequence

from eval.config import GridConfig
from eval.prompts import Item, grid_rows
from imagen import picture

if TYPE_CHECKING:
    from eval.score import Sampled

SHOWN_NEAREST = 8
"""Pairs of a sample and the training image nearest to it."""
THUMBNAIL_PX = 96
QUALITY = 82
TALLEST = 10
"""Times its width that a picture of the page may be high."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sample, by its number, and the training image nearest to it."""

    sample: int
    image: np.ndarray
    """uint8 (h, w, c), like the other."""
    original: np.ndarray


def grid(sampled: "Sampled", shape: GridConfig) -> Image.Image:
    """Return the labelled grid: a row for each prompt, all members of each seed side by side."""
    rows = grid_rows(sampled.items, shape.prompts, shape.seeds)
    seeds = max(len(row) for row in rows)
    members = list(sampled.members)
    images = [[sampled.members[name][i] for i in row for name in members] for row in rows]
    labels = [_row_label(sampled, row) for row in rows]
    style = picture.GridStyle(group=len(members))
    return picture.grid(images, labels, members * seeds, style)


def preview(sampled: "Sampled", shape: GridConfig) -> Image.Image:
    """Return the last member's images of the grid without labels: a column for each prompt."""
    last = list(sampled.members.values())[-1]
    rows = grid_rows(sampled.items, shape.prompts, shape.seeds)
    seeds = min(len(row) for row in rows)
    return picture.mosaic([[last[row[s]] for row in rows] for s in range(seeds)])


def _row_label(sampled: "Sampled", row: list[int]) -> str:
    return _label(sampled.items[row[0]].prompt, [sampled.items[i].seed for i in row])


def _label(prompt: str, seeds: list[int]) -> str:
    told = ", ".join(map(str, seeds))
    return f"{prompt or '(no text)'}\nseed{'s' if len(seeds) > 1 else ''} {told}"


def sweep_grid(
    items: Sequence[Item],
    columns: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    prompts: int,
) -> Image.Image:
    """Return the labelled grid of a sweep: a row for each prompt, a column for each value.

    `columns`: images of all items at each value; `prompts`: rows.
    """
    rows = [row[0] for row in grid_rows(list(items), prompts, 1)]
    images = [[column[i] for column in columns] for i in rows]
    return picture.grid(images, [_label(items[i].prompt, [items[i].seed]) for i in rows], labels)


def nearest(pairs: Sequence[Pair]) -> Image.Image:
    """Return `nearest.png`: samples above, below each the training image nearest to it."""
    return picture.mosaic([[p.image for p in pairs], [_like(p.original, p.image) for p in pairs]])


def _like(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return an image as large as another one, which it is but for rare sizes."""
    if image.shape == other.shape:
        return image
    height, width, channels = other.shape
    resized = np.asarray(picture.exact(image).resize((width, height), Image.Resampling.BOX))
    return np.broadcast_to(resized.reshape(height, width, -1), (height, width, channels))


def columns(png: bytes, count: int) -> list[tuple[bytes, bytes]]:
    """Return the pictures of `nearest.png`, column by column: above and below, as PNG."""
    whole = Image.open(io.BytesIO(png))
    width, height = whole.width // count, whole.height // 2
    cells = [(i * width, row * height) for i in range(count) for row in (0, 1)]
    parts = [thumbnail(whole.crop((x, y, x + width, y + height))) for x, y in cells]
    return list(zip(parts[::2], parts[1::2], strict=True))


def thumbnail(shown: Image.Image) -> bytes:
    """Return a picture as PNG, made smaller if it is large."""
    if max(shown.size) > THUMBNAIL_PX:
        shown = shown.copy()
        shown.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return picture.png(shown)


def smallest(data: bytes, width: int) -> bytes:
    """Return a picture at most `width` pixels wide in the format that takes the fewest bytes."""
    shown = Image.open(io.BytesIO(data))
    scale = min(width / shown.width, TALLEST * width / shown.height)
    if scale < 1:
        size = max(1, round(shown.width * scale)), max(1, round(shown.height * scale))
        shown = shown.resize(size, Image.Resampling.LANCZOS)
    elif len(data) < 1000:
        return data
    forms: list[tuple[str, dict[str, Any]]] = [
        ("PNG", {"optimize": True}),
        ("WEBP", {"quality": QUALITY, "method": 4}),
        ("WEBP", {"lossless": True, "method": 3}),
        ("JPEG", {"quality": QUALITY}),
    ]
    grey_or_colour = shown if shown.mode in ("L", "RGB") else shown.convert("RGB")
    saved = (_saved(grey_or_colour, *form) for form in forms)
    return min((one for one in saved if one is not None), key=len)


def as_png(data: bytes, width: int) -> tuple[bytes, tuple[int, int]]:
    """Return a picture at most `width` pixels wide as PNG, and its width and height."""
    shown = Image.open(io.BytesIO(data)).convert("RGB")
    shown.thumbnail((width, 100 * width), Image.Resampling.LANCZOS)
    return picture.png(shown), shown.size


def _saved(shown: Image.Image, form: str, options: dict[str, Any]) -> bytes | None:
    """Return a picture in a format, None where that has no pictures so large; PNG has."""
    out = io.BytesIO()
    try:
        shown.save(out, form, **options)
    except (OSError, ValueError):
        if form == "PNG":
            raise
        return None
    return out.getvalue()


def film(data: bytes, most_bytes: int) -> bytes | None:
    """Return an animation of at most so many bytes, with smaller pictures if need be, or None."""
    for scale in (1, 2, 4):
        smaller = data if scale == 1 else _scaled(data, scale)
        if len(smaller) <= most_bytes:
            return smaller
    return None


def _scaled(data: bytes, scale: int) -> bytes:
    source = Image.open(io.BytesIO(data))
    size = max(1, source.width // scale), max(1, source.height // scale)
    frames, times = [], []
    for frame in ImageSequence.Iterator(source):
        times.append(frame.info.get("duration", 100))
        frames.append(frame.convert("RGB").resize(size, Image.Resampling.BOX))
    out = io.BytesIO()
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=70
    )
    return out.getvalue()
