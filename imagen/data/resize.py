"""Prepared images: a data set's pictures at the size of a member, so that training decodes less.

A picture is stored as the pixels that `images.decode` gives for the member: losslessly, so that a
member sees the same pixels as from the source. (A super-resolution member makes its low-resolution
picture from them, not from the larger source: 56 dB from what it was.) Colour is WebP, grey is PNG:
of the lossless formats that readers of tars know, those are the smaller, and read as fast or faster
(benchmarks/PREPARE_XEON2_202611.md).

A picture stays as it is, its file byte by byte, when that is no larger than the new one, or when
the member cannot use it: it is too small, or cannot be decoded. Rows never shift.

Files of a member in `<out>/prepared/<member>/`, the last one last:

```
data/00000.tar   the samples of the source's 00000.tar: same rows, keys and captions
index/           its index, made like the source's, whose digests it has
prepared.json    manifest (kind "prepared"): of which data set, at which size
```
"""

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from imagen import manifest, storage
from imagen.data import images, index
from imagen.data.prepared import Prepared
from imagen.data.samples import FORMATS
from imagen.data.shard_cache import ShardCache
from imagen.errors import ShardError

VERSION = 1
"""Raise it when other bytes are stored: prepared images of another version are done again."""

MANIFEST, KIND = "prepared.json", "prepared"
_RUN = "run `python -m preencode prepare CONFIG`: it makes what is missing or changed"
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

Kept = Literal["no_larger", "too_small", "unreadable"]
"""Why a picture stays as it is: its file is no larger, or the member gives it no weight."""


@dataclass(frozen=True, slots=True)
class Target:
    """What pictures are prepared for."""

    shape: tuple[int, int]
    """(height, width) in pixels."""
    channels: int

    def settings(self) -> dict[str, Any]:
        """Return what decides the stored bytes of a source image."""
        return {
            "size": list(self.shape),
            "channels": self.channels,
            "pixels": [VERSION, images.VERSION],
        }


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is stored: its bytes, and why they are the source's own, if they are."""

    data: bytes
    extension: str
    kept: Kept | None = None
    detail: str = ""
    """Of an unreadable image: what the decoder says."""


def resize(data: bytes, target: Target) -> Picture:
    """Return an image at the size of `target`, or as it is."""
    try:
        (pixels,) = images.decode(data, (target.shape,), target.channels)
    except ShardError as err:
        return _unusable(data, target, err.message)
    made = _encode(pixels)
    if len(made.data) < len(data):
        return made
    return Picture(data, _extension(data), "no_larger")


def _encode(pixels: npt.NDArray[np.uint8]) -> Picture:
    out = io.BytesIO()
    if len(pixels) == 1:
        Image.fromarray(pixels[0]).save(out, "PNG")
        return Picture(out.getvalue(), "png")
    # method 4 makes 0 to 8 % less of it, and takes 27 to 35 times as long
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "WEBP", lossless=True, method=0)
    return Picture(out.getvalue(), "webp")


def _unusable(data: bytes, target: Target, reason: str) -> Picture:
    """Keep an image that cannot be decoded at a size; tell whether it can at the smallest one."""
    height, width = target.shape
    divisor = math.gcd(height, width)
    try:
        images.decode(data, ((height // divisor, width // divisor),), target.channels)
    except ShardError as err:
        return Picture(data, _extension(data), "unreadable", err.message)
    return Picture(data, _extension(data), "too_small", reason)


def _extension(data: bytes) -> str:
    """Return the extension for an image's bytes; an index knows their header to be readable."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _EXTENSIONS.get(image.format or "", "jpg")


def index_dir(folder: str) -> str:
    """Return where the index of a member's prepared images is."""
    return storage.join(folder, "index")


def identity(source: str, target: Target) -> dict[str, Any]:
    """Return what the manifest of prepared images says they are of; `source`: a fingerprint."""
    return {"source": source, **target.settings(), "index": index.VERSION}


def open_set(
    folder: str, source: Prepared, target: Target, cache: ShardCache | None = None
) -> Prepared:
    """Open the prepared images of a member, whose rows are those of `source`.

    Raises ShardError when they are missing, unfinished, of other data or of another size.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise ShardError(f"no finished prepared images in `{folder}`", _RUN)
    body = manifest.read(path, KIND)
    for key, wanted in identity(source.fingerprint, target).items():
        if body.get(key) != wanted:
            raise ShardError(
                f"the prepared images in `{folder}` are stale: {key} was {body.get(key)}, is "
                f"{wanted}",
                _RUN,
            )
    found = Prepared.open(index_dir(folder), cache)
    if found.fingerprint != body["data"]:
        raise ShardError(
            f"the index of the prepared images in `{folder}` is another one than `{MANIFEST}` says",
            _RUN,
        )
    return found
