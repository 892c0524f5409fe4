"""Pictures in a terminal: two pixels a character, by half blocks in 24-bit colour."""

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

UPPER_HALF = "▀"


def show(picture: Image.Image, columns: int) -> Text:
    """Return a picture, `columns` characters wide or its own width if that is less."""
    width = min(columns, picture.width)
    height = max(2, round(picture.height * width / picture.width) // 2 * 2)
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BOX))
    lines = [
        Text.assemble(*(_cell(upper, lower) for upper, lower in zip(*pair, strict=True)))
        for pair in zip(pixels[::2], pixels[1::2], strict=True)
    ]
    return Text("\n").join(lines)


def _cell(upper: np.ndarray, lower: np.ndarray) -> tuple[str, Style]:
    front, back = (Color.from_rgb(*map(int, rgb)) for rgb in (upper, lower))
    return UPPER_HALF, Style(color=front, bgcolor=back)
