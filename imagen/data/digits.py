"""Real handwritten digits: the 1,797 scans of 8x8 pixels that scikit-learn carries, with captions.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import numpy as np
from PIL import Image

SIZE_PX = 32
"""Height and width of the imported images."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

PHRASINGS = (
    "{numeral}",
    "{word}",
    "a handwritten {word}",
    "the digit {numeral}",
    "a picture of the number {word}",
    "{word}, written by hand",
)
"""Ways to say a digit, as format strings of `numeral` and `word`."""


def images() -> list[tuple[Image.Image, int]]:
    """Return (grey 32x32 image, digit) of every scan, upsampled once, antialiased."""
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)  # data: (1797, 64)
    scans = zip(np.asarray(data).reshape(-1, 8, 8), np.asarray(target), strict=True)
    return [(_upsample(scan), int(digit)) for scan, digit in scans]


def _upsample(scan: np.ndarray) -> Image.Image:
    levels = np.round(scan * (255 / 16)).astype(np.uint8)  # the scans have 17 levels
    return Image.fromarray(levels).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)


def caption(digit: int, phrasing: int) -> str:
    """Return how the given phrasing says the digit."""
    return PHRASINGS[phrasing].format(numeral=digit, word=WORDS[digit])


def digit_of(text: str) -> int:
    """Return the digit that a caption speaks of. Raises ValueError when it is none of ours."""
    for digit in range(10):
        if any(caption(digit, p) == text for p in range(len(PHRASINGS))):
            return digit
    raise ValueError(f"no digit caption: {text!r}")
