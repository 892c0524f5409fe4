"""Pictures for the eye: exact PNGs and labelled grids of small images."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, QUIET, FRAME = (250, 250, 248), (28, 28, 30), (120, 120, 126), (208, 208, 204)
MARGIN, GAP, LINE_GAP = 14, 6, 4  # px


_Line = tuple[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridStyle:
    """Sizes of a labelled grid, in pixels of the written picture."""

    cell: int = 96
    """Smallest side of a shown image; each is enlarged by repeating pixels."""
    font: int = 15
    """Height of the labels."""
    label_chars: int = 30
    """Row labels are broken into lines of at most this many characters."""
    group: int = 1
    """Columns that belong together; a wider gap follows each group."""


@dataclass(slots=True)
class _Layout:
    """Where cells and labels of a grid go, in pixels."""

    side: int
    left: int
    top: int
    line: int
    xs: list[int] = field(default_factory=list)
    row_height: int = 0


def exact(image: np.ndarray) -> Image.Image:
    """Return the picture whose pixels are `image`: uint8 (h, w, c), c = 1, 3 or 4."""
    assert image.dtype == np.uint8, f"a picture is made of uint8, not {image.dtype}"
    assert image.ndim == 3, f"a picture is (h, w, c), not {image.shape}"
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def mosaic(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Return rows of equally large uint8 (h, w, c) images, edge to edge, pixel by pixel."""
    return exact(np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0))


def enlarge(image: np.ndarray, side: int) -> Image.Image:
    """Return `image` (h, w, c) with repeated pixels, `side` pixels wide."""
    height = round(image.shape[0] * side / image.shape[1])
    return exact(image).resize((side, height), Image.Resampling.NEAREST)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    style: GridStyle | None = None,
) -> Image.Image:
    """Return a labelled grid of uint8 (h, w, c) images, which may differ in size.

    All are shown equally large: a whole multiple of the widest one, so its pixels stay square.
    The first line of a row label is its title, what follows a line break is set in grey.
    """
    assert len(rows) == len(row_labels), f"{len(rows)} rows, {len(row_labels)} labels"
    assert all(len(row) <= len(column_labels) for row in rows), "more images than column labels"
    style = style or GridStyle()
    font = ImageFont.load_default(style.font)
    labels = [_lines(label, style.label_chars) for label in row_labels]
    layout = _layout(rows, labels, column_labels, font, style)
    size = (layout.xs[-1] + layout.side + MARGIN, layout.top + layout.row_height * len(rows))
    canvas = Image.new("RGB", (size[0], size[1] + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, label in zip(layout.xs, column_labels, strict=False):
        centre = (x + layout.side / 2, layout.top - GAP)
        draw.text(centre, label, INK, font, anchor="md")
    for y, (label, row) in enumerate(zip(labels, rows, strict=True)):
        _draw_row(canvas, draw, font, layout, (layout.top + y * layout.row_height, label, row))
    return canvas


def _draw_row(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
    layout: _Layout,
    content: tuple[int, list[_Line], Sequence[np.ndarray]],
) -> None:
    top, lines, row = content
    first = top + (layout.row_height - GAP) // 2 - layout.line * (len(lines) - 1) / 2
    for i, (text, colour) in enumerate(lines):
        at = (layout.left - 2 * GAP, first + i * layout.line)
        draw.text(at, text, colour, font, anchor="rm")
    for x, image in zip(layout.xs, row, strict=False):
        shown = enlarge(image, layout.side)
        canvas.paste(shown, (x, top))
        box = (x - 1, top - 1, x + shown.width, top + shown.height)
        draw.rectangle(box, outline=FRAME)


def _layout(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[list[_Line]],
    column_labels: Sequence[str],
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
    style: GridStyle,
) -> _Layout:
    widest = max((image.shape[1] for row in rows for image in row), default=1)
    heads = [font.getlength(label) for label in column_labels]
    side = widest * -(-style.cell // widest)
    pitch = max(side, *(int(head) + 2 * GAP for head in heads)) if heads else side
    widths = [font.getlength(text) for lines in labels for text, _ in lines]
    left = MARGIN + 2 * GAP + int(max(widths, default=0))
    line = style.font + LINE_GAP
    top = MARGIN + GAP + (line if any(column_labels) else 0)
    layout = _Layout(side=side, left=left, top=top, line=line)
    x = left + (pitch - side) // 2
    for i in range(max(1, len(column_labels))):
        layout.xs.append(x)
        x += pitch + GAP + (2 * MARGIN if (i + 1) % style.group == 0 and style.group > 1 else 0)
    most_lines = max((len(lines) for lines in labels), default=1)
    tallest = max((side * i.shape[0] // i.shape[1] for row in rows for i in row), default=side)
    layout.row_height = max(tallest, most_lines * line) + GAP
    return layout


def _lines(label: str, chars: int) -> list[_Line]:
    """Return the lines of a label, broken at `chars`, each with its colour."""
    parts = label.split("\n")
    broken = [textwrap.wrap(part, chars) or [""] for part in parts]
    return [(text, INK if i == 0 else QUIET) for i, part in enumerate(broken) for text in part]
