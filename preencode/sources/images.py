"""Images as a tar keeps them: the bytes untouched where readers know the format, else as PNG."""

import io

import numpy as np
from PIL import Image, ImageOps

from imagen.data.samples import LARGEST_PIXELS, SMALLEST_PX
from preencode.sources.rows import BadRowError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}
)
"""Names of files that are taken for images."""

_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # nothing that runs programs
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


def stored(data: bytes) -> tuple[str, bytes]:
    """Return (extension, bytes) of an image as a tar keeps it.

    JPEG, PNG and WebP keep their bytes, and only their header is read. Of others the first frame,
    turned upright, is stored as PNG. Raises BadRowError, also where an index would leave it out.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_READ) as image:
            _check_size(image)
            if image.format in _KEPT:
                return _KEPT[image.format], data
            return "png", _png(image)
    except BadRowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise BadRowError("image_size", str(err)) from None
    except Exception as err:  # hostile bytes raise anything in Pillow's plugins
        detail = str(err).partition(" <_io")[0]  # Pillow adds a memory address
        raise BadRowError("not_an_image", f"{detail} ({len(data)} bytes)") from None


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < SMALLEST_PX or width * height > LARGEST_PIXELS:
        raise BadRowError("image_size", f"{width}x{height} px")


def _png(image: Image.Image) -> bytes:
    if image.mode in ("I", "F"):
        raise BadRowError(
            "not_an_image", f"pixels of mode {image.mode!r}, which have no known range"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") and image.mode not in _PNG_MODES:
        # convert() would clip 16 bits, not scale them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _PNG_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()
