"""JPEGs by simplejpeg, where it is installed: the pixels of Pillow, in less time.

Both hold libjpeg-turbo, but Pillow adds work of its own that counts for small pictures. Only plain
files are taken, of which the two were tested to make the same pixels: 8 bits, grey or colour,
baseline or progressive, with nothing in them that turns or converts a picture. For all else, and
for what simplejpeg so much as warns of, Pillow decides.
"""

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from imagen.data.samples import LARGEST_PIXELS


def _library() -> Any:
    """Return the module, None where it is not installed: an optional extra."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


simplejpeg = _library()

_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_PASSED = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xFE})
"""Huffman and quantisation tables, restart interval, JFIF header, comment."""
_ICC = b"ICC_PROFILE\0"
_SCALES = (8, 4, 2)
_COLOURS = {1: "GRAY", 3: "RGB"}


def is_there() -> bool:
    """Tell whether simplejpeg is installed."""
    return simplejpeg is not None


def decode(data: bytes, least: int) -> npt.NDArray[np.uint8] | None:
    """Return a JPEG as uint8 (h, w, 1 or 3), None when Pillow has to look at it.

    Decoded at the smallest scale of which both sides have `least` pixels, as Pillow's draft mode.
    """
    if simplejpeg is None or (found := _frame(data)) is None:
        return None
    height, width, channels = found
    scale = next((s for s in _SCALES if min(height, width) // least >= s), 1)
    size = -(-height // scale), -(-width // scale)
    least_px = {"min_height": size[0], "min_width": size[1], "min_factor": scale}
    try:
        pixels = simplejpeg.decode_jpeg(data, _COLOURS[channels], **least_px)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == size else None


def decode_into(data: bytes, out: npt.NDArray[np.uint8]) -> bool:
    """Decode a JPEG that has the shape of `out` already; False when it is for `decode`."""
    if simplejpeg is None or _frame(data) != out.shape:
        return False
    try:
        simplejpeg.decode_jpeg(data, _COLOURS[out.shape[2]], buffer=out)
    except ValueError:
        return False
    return True


def _frame(data: bytes) -> tuple[int, int, int] | None:
    """Return (height, width, channels) of a plain JPEG from its headers, None for any other."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind, size = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if kind in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3)
            usable = plain and 0 < height * width <= LARGEST_PIXELS
            return (height, width, data[at + 9]) if usable else None
        if kind not in _PASSED and data[at + 4 : at + 4 + len(_ICC)] != _ICC:
            return None
        at += 2 + size
    return None
