"""The denoising of a few pictures as an animation: what each member predicts, step by step."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from eval.prompts import Item
from imagen import storage
from imagen.cascade import Cascade, SampleOptions
from imagen.data.images import to_uint8
from imagen.picture import exact

LARGEST_PX = 192
"""Most pixels that a picture is wide in the animation."""
SMALLEST_PX = 96
PICTURES = 4
FRAME_MS, LAST_MS = 120, 2000
MOST_FRAMES = 64
"""Of each member; of more, as many are shown, evenly chosen, the last one included."""
GAP_PX, PAPER = 6, 250


@dataclass(frozen=True, slots=True)
class Film:
    """Items whose denoising is shown, and the file that the animation goes to."""

    path: str
    items: tuple[Item, ...]
    options: SampleOptions

    def make(self, cascade: Cascade) -> int:
        """Sample and publish; return 0, for its images are samples already."""
        storage.put(self.path, draw(cascade, self.items, self.options))
        return 0


def chosen(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the items to show: the first ones of different prompts."""
    first = {item.prompt: item for item in reversed(items)}
    order = list(dict.fromkeys(item.prompt for item in items))
    return tuple(first[prompt] for prompt in order[:PICTURES])


def draw(cascade: Cascade, items: Sequence[Item], options: SampleOptions) -> bytes:
    """Return an animated WebP of the items being sampled, side by side, member after member.

    Its last frame is the result: samplers return the last clean image that is predicted.
    """
    seen: dict[str, list[np.ndarray]] = {}

    def note(member: str, x0: torch.Tensor) -> None:
        pictures = to_uint8(x0.clamp(-1, 1)).cpu().numpy().transpose(0, 2, 3, 1)
        seen.setdefault(member, []).append(pictures)

    made = cascade.sample(
        [item.prompt for item in items], [item.seed for item in items], options, on_denoised=note
    )
    width = _width(list(made.values())[-1].shape[-1])
    frames = [_frame(pictures, width) for shown in seen.values() for pictures in _thin(shown)]
    return _webp(frames)


def _width(pixels: int) -> int:
    """Return how wide pictures are shown: small ones enlarged by a whole number."""
    if pixels >= SMALLEST_PX:
        return min(pixels, LARGEST_PX)
    return pixels * -(-SMALLEST_PX // pixels)


def _thin(pictures: list[np.ndarray]) -> list[np.ndarray]:
    if len(pictures) <= MOST_FRAMES:
        return pictures
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, MOST_FRAMES).round().astype(int)]


def _frame(pictures: np.ndarray, width: int) -> Image.Image:
    height = round(pictures.shape[1] * width / pictures.shape[2])
    canvas = Image.new("RGB", ((width + GAP_PX) * len(pictures) - GAP_PX, height), (PAPER,) * 3)
    for i, picture in enumerate(pictures):
        how = Image.Resampling.BOX if picture.shape[1] > width else Image.Resampling.NEAREST
        shown = exact(picture).convert("RGB").resize((width, height), how)
        canvas.paste(shown, (i * (width + GAP_PX), 0))
    return canvas


def _webp(frames: Sequence[Image.Image]) -> bytes:
    out = io.BytesIO()
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80
    )
    return out.getvalue()
