"""Images as rows of numbers: the common ground on which pictures of any size are compared."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
"""Pixels a side at which images are compared and judged."""


def resized(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return uint8 (h, w, c) as (side, side, c): areas averaged down, bicubic up."""
    height, width, channels = image.shape
    if (height, width) == (side, side):
        return image
    how = Image.Resampling.BOX if min(height, width) >= side else Image.Resampling.BICUBIC
    planes = [Image.fromarray(image[:, :, c]).resize((side, side), how) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def colours(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return uint8 (h, w, c) images as float32 (n, side * side * c) in [0, 1]."""
    rows = [resized(image).astype(np.float32).ravel() / 255 for image in images]
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def greys(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return uint8 (h, w, c) images as float32 (n, side * side) grey in [0, 1]."""
    rows = [resized(image).astype(np.float32).mean(axis=-1).ravel() / 255 for image in images]
    return np.stack(rows) if rows else np.zeros((0, SIDE * SIDE), np.float32)


def evenly(rows: Any, most: int) -> Any:
    """Return at most `most` of the rows of an array, or images of a list, evenly spread."""
    if len(rows) <= most:
        return rows
    chosen = np.linspace(0, len(rows) - 1, most).astype(int)
    return rows[chosen] if isinstance(rows, np.ndarray) else [rows[i] for i in chosen]
