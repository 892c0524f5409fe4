"""Picture files that a person gives: read, upright, cut to the members' aspect ratio, scaled."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from imagen import storage
from imagen.errors import ConfigError, ShardError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Photo:
    """A picture file that was read."""

    path: str
    data: bytes

    @property
    def facts(self) -> dict[str, str]:
        """What identifies it: path, and SHA-256 of the file."""
        return {"path": self.path, "sha256": hashlib.sha256(self.data).hexdigest()}

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, upright. Raises ConfigError when it is no picture."""
        try:
            with Image.open(io.BytesIO(self.data)) as image:
                width, height = ImageOps.exif_transpose(image).size
        except Exception as err:  # hostile bytes raise anything in Pillow's plugins
            raise ConfigError(
                f"`{self.path}` is not a readable picture: {type(err).__name__}: {err}",
                "give a PNG, JPEG, WebP or another format that Pillow reads",
            ) from err
        return height, width


def read(path: str) -> Photo:
    """Return the picture file at a path or URL. Raises ConfigError when there is none."""
    if not storage.exists(path):
        raise ConfigError(f"picture `{path}` does not exist")
    picture = Photo(path, storage.get(path))
    _ = picture.size  # unreadable: told now
    return picture


def image(picture: Photo, shape: tuple[int, int], channels: int) -> "torch.Tensor":
    """Return x0 (1, c, h, w) of a picture: centre cut, on white, scaled down to `shape` (h, w).

    Raises ConfigError when it is smaller than that: pictures are never enlarged.
    """
    import torch

    from imagen.data.images import CHANNELS, to_x0

    if channels not in CHANNELS:
        raise ConfigError(
            f"the cascade draws {channels} channels, picture files have 1 or 3",
            "give the edit a tensor: imagen.Edit(image=...)",
        )
    return to_x0(torch.tensor(_pixels(picture, shape, channels)[None]))


def mask(picture: Photo, of: Photo, shape: tuple[int, int]) -> "torch.Tensor":
    """Return a mask (1, 1, h, w) at `shape`, 1 where white: cut as the picture `of` it is for.

    A pixel that covers any white is 1. Raises ConfigError when it does not fit the picture.
    """
    import torch
    from torch.nn import functional

    if picture.size != of.size:
        raise ConfigError(
            f"mask `{picture.path}` is {_told(picture.size)} px, picture `{of.path}` "
            f"{_told(of.size)} px",
            "a mask is as large as its picture: white = paint anew, black = keep",
        )
    (height, width), (high, wide) = picture.size, shape
    cut = min(height, width * high // wide), min(width, height * wide // high)
    white = torch.tensor(_pixels(picture, cut, channels=1)[None]) >= 128
    if not white.any():
        raise ConfigError(
            f"mask `{picture.path}` has no white where the picture is used: nothing would change",
            "white = paint anew, black = keep",
        )
    return functional.adaptive_max_pool2d(white.float(), shape)


def _pixels(picture: Photo, shape: tuple[int, int], channels: int) -> npt.NDArray[np.uint8]:
    from imagen.data.images import decode

    try:
        return decode(picture.data, (shape,), channels)[0]
    except ShardError as err:
        raise ConfigError(
            f"picture `{picture.path}`: {err.message}",
            "pictures are never enlarged: give a larger one, or a smaller member (edit: last or "
            "--until; upscale: first or --from)",
        ) from err


def _told(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
