"""Sources that need no download: real digits that scikit-learn carries, and generated shapes."""

import hashlib
import io
from collections.abc import Iterator, Mapping

from PIL import Image

from imagen.data import digits, shapes
from preencode.sources import rows
from preencode.sources.config import SHAPES_SAMPLES, SourceConfig
from preencode.sources.rows import Row, Sample, Slice


class DigitsSource:
    """All digits, shuffled and worded by the seed, in shards of equal size up to one sample."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        self._shards = config.shards
        self._samples = digit_samples(seed)
        self.title = "digits of scikit-learn"
        self.listing = ""
        self.rows = len(self._samples)
        self.size_bytes = None
        self.ignored: Mapping[str, int] = {}

    def slices(self) -> Iterator[Slice]:
        """Cut the samples into shards."""
        for i in range(self._shards):
            yield Slice(i * self.rows // self._shards, (i + 1) * self.rows // self._shards)

    def read(self, part: Slice) -> Iterator[Row]:
        """Yield the samples of a slice."""
        for key, image, text in self._samples[part.start : part.stop]:
            yield Sample(key, {"png": _png(image), "txt": text.encode("utf8")})


def digit_samples(seed: int) -> list[tuple[str, Image.Image, str]]:
    """Return (key, image, caption) of all digits, shuffled and worded by `seed`."""
    samples = []
    for i, (image, digit) in enumerate(digits.images()):
        text = digits.caption(digit, _draw(seed, "phrasing", i) % len(digits.PHRASINGS))
        samples.append((f"digit{i:04d}", image, text))
    order = sorted(range(len(samples)), key=lambda i: _draw(seed, "order", i))
    return [samples[i] for i in order]


def _draw(seed: int, purpose: str, i: int) -> int:
    """Return 64 bits for sample `i`: SHA-256, so that no library can change an import."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {i}".encode()).digest()[:8], "big")


class ShapesSource:
    """Generated scenes with captions; scene `i` depends on the seed and `i` alone."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._pairs = shapes.training_pairs(config.heldout_pairs)
        held = len(shapes.heldout_pairs(config.heldout_pairs))
        self.title = f"shapes, {held} of {len(shapes.PAIRS)} (colour, shape) pairs held out"
        self.listing = ""
        self.rows = config.samples or SHAPES_SAMPLES
        self.size_bytes = None
        self.ignored: Mapping[str, int] = {}

    def slices(self) -> Iterator[Slice]:
        """Cut the scenes into shards; they are drawn by chance, so their order needs no dealing."""
        return rows.equal_slices(self.rows, self._config.shard_samples)

    def read(self, part: Slice) -> Iterator[Row]:
        """Draw the scenes of a slice."""
        for i in range(part.start, part.stop):
            scene = shapes.scene(self._seed, i, self._pairs)
            image = shapes.draw(scene, self._seed, i, self._config.size)
            text = shapes.caption(scene, shapes.phrasing(self._seed, i))
            yield Sample(rows.key_of(i), {"png": _png(image), "txt": text.encode("utf8")})


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()
