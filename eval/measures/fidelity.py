"""What super-resolution keeps of its input: is the large picture, made small again, the same?

The low-resolution input of a member is the image that the member before it made. A large picture is
made small as training makes the small ones: by Pillow's Lanczos filter.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from eval.measures import intervals

_ROUNDING = 1 / 255**2 / 12
"""Mean square error of rounding to 8 bits: equal pictures are no more alike than that."""


def scaled(image: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
    """Return uint8 (h, w, c) at another size."""
    planes = [
        np.asarray(Image.fromarray(image[:, :, c]).resize((width, height), how))
        for c in range(image.shape[2])
    ]
    return np.stack(planes, axis=-1)


class Fidelity:
    """Collects the figures of all super-resolution members, block by block."""

    def __init__(self, members: Sequence[str]) -> None:
        self._pairs = list(pairwise(members))
        self._rows: dict[str, list[list[Any]]] = {member: [] for _, member in self._pairs}

    def see(self, block: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Look at some images of all members."""
        for before, member in self._pairs:
            pairs = zip(block[before], block[member], strict=True)
            self._rows[member].extend(_compared(small, large) for small, large in pairs)

    def body(self) -> dict[str, Any]:
        """Return the `fidelity` section of metrics.json."""
        return {member: _figures(rows) for member, rows in self._rows.items() if rows}

    def of(self, member: str) -> np.ndarray:
        """Return the difference to the input of each image of a member."""
        return np.sqrt(np.array([row[0] for row in self._rows[member]], np.float64))


def _compared(small: np.ndarray, large: np.ndarray) -> list[Any]:
    """Return mean square error, sharpness of large and of small enlarged, shift of each channel."""
    height, width = small.shape[:2]
    again = scaled(large, height, width, Image.Resampling.LANCZOS) / 255.0
    difference = again - small / 255.0
    blurred = scaled(small, large.shape[0], large.shape[1], Image.Resampling.BICUBIC)
    shift = difference.mean(axis=(0, 1))
    return [float((difference**2).mean()), _edges(large), _edges(blurred), *shift.tolist()]


def _edges(image: np.ndarray) -> float:
    """Return the mean difference of neighbouring pixels."""
    values = image.astype(np.float64) / 255
    return float(np.abs(np.diff(values, axis=0)).mean() + np.abs(np.diff(values, axis=1)).mean())


def _figures(rows: list[list[Any]]) -> dict[str, Any]:
    table = np.array(rows)
    squares, shifts = table[:, 0], table[:, 3:]
    psnr = -10 * np.log10(squares + _ROUNDING)
    drift = intervals.mean(np.abs(shifts).mean(axis=1))
    return {
        "consistency": intervals.mean(np.sqrt(squares)),
        "psnr": intervals.mean(psnr, unit="dB"),
        "colour_drift": {**drift, "channels": [intervals.short(v) for v in shifts.mean(axis=0)]},
        "sharpness_gain": intervals.ratio(table[:, 1], table[:, 2]),
    }
