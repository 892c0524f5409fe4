"""Statistics of real images in the features of a network: what samples are compared with.

A file of them (safetensors) holds mean and covariance of all images, the features of some of them
for KID, precision and recall, and says of which images and by which network it is.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from eval.features import evenly
from eval.measures.frechet import Gaussian
from eval.originals import Original, Source
from imagen import storage
from imagen.data.images import Size, decode
from imagen.data.images import told as in_words
from imagen.errors import ConfigError, ShardError

FORMAT = "imagen/statistics/2"
MOST_FEATURES = 10_000
"""Images whose features are kept."""
_BATCH = 64

Extract = Callable[[list[np.ndarray]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of some real images."""

    network: str
    """Fingerprint of what made the features."""
    what: str
    """Which images they are, for people."""
    gaussian: Gaussian
    features: np.ndarray
    """float32 (m, d) of up to `MOST_FEATURES` of the images."""
    identity: str = ""
    """Text that changes when other images are read."""
    unreadable: dict[str, int] = field(default_factory=dict)
    """Images left out, by reason."""
    size: tuple[int, int] = (0, 0)
    """Height and width at which the images were looked at; zeros: never kept in a file."""
    channels: int = 0

    @classmethod
    def of(cls, network: str, what: str, rows: np.ndarray) -> "Statistics":
        """Return the statistics of features (n, d) that are all in memory."""
        return cls(network, what, Gaussian.of(rows), evenly(rows, MOST_FEATURES))


@dataclass(frozen=True, slots=True)
class Look:
    """How real images are looked at."""

    size: Size
    """They are cut in the middle and scaled to it, as in training."""
    channels: int
    network: str
    """Fingerprint of what makes the features."""

    def identity(self, source: Source) -> str:
        """Return a text that changes when the statistics would."""
        return f"{FORMAT} {source.identity} {self.shape} {self.channels} {self.network}"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class _Sum:
    """Statistics of what has been seen so far: a chunk is in memory, and the features kept."""

    def __init__(self) -> None:
        self.gaussian: Gaussian | None = None
        self._kept: list[tuple[bytes, np.ndarray]] = []

    def add(self, names: list[str], rows: np.ndarray) -> None:
        found = Gaussian.of(rows)
        self.gaussian = found if self.gaussian is None else self.gaussian + found
        ranks = (hashlib.sha256(name.encode("utf8", "surrogateescape")).digest() for name in names)
        self._kept.extend(zip(ranks, rows, strict=True))
        if len(self._kept) > 2 * MOST_FEATURES:
            self._prune()

    def _prune(self) -> None:
        """Keep those whose names have the smallest hashes: the same ones in any order."""
        self._kept = sorted(self._kept, key=lambda pair: pair[0])[:MOST_FEATURES]

    def features(self) -> np.ndarray:
        self._prune()
        return np.stack([row for _, row in self._kept]).astype(np.float32)


def usable(source: Source, look: Look, bad: Counter[str]) -> Iterator[tuple[Original, np.ndarray]]:
    """Yield the images that statistics use, as they are looked at; `bad` counts the others."""
    for original in source.read(bad):
        image = _decoded(original, look, bad)
        if image is not None:
            yield original, image


def gather(
    source: Source,
    look: Look,
    extract: Extract,
    done: Callable[[int], None] = lambda _: None,
    used: Callable[[Original], None] = lambda _: None,
) -> Statistics:
    """Return the statistics of a source's images, read a chunk at a time.

    `done(images)` is called for each chunk, `used(original)` for each image that is in them. Raises
    ShardError when no image can be read.
    """
    bad, found, chunk = Counter[str](), _Sum(), list[tuple[str, np.ndarray]]()

    def flush() -> None:
        if chunk:
            found.add([name for name, _ in chunk], extract([image for _, image in chunk]))
            done(len(chunk))
            chunk.clear()

    for original, image in usable(source, look, bad):
        used(original)
        chunk.append((original.name, image))
        if len(chunk) == _BATCH:
            flush()
    flush()
    if found.gaussian is None:
        raise ShardError(f"no {source.what} can be used: {dict(bad) or 'there are none'}")
    return Statistics(
        look.network,
        f"{found.gaussian.n:,} {source.what}",
        found.gaussian,
        found.features(),
        look.identity(source),
        dict(sorted(bad.items())),
        look.shape,
        look.channels,
    )


def _decoded(original: Original, look: Look, bad: Counter[str]) -> np.ndarray | None:
    try:
        (planes,) = decode(original.data, (look.size,), look.channels)
    except ShardError as err:
        bad[err.message] += 1
        return None
    return planes.transpose(1, 2, 0)


def save(path: str, found: Statistics) -> None:
    """Publish a file of statistics."""
    arrays = {
        "mean": found.gaussian.mean,
        "scatter": found.gaussian.scatter,
        "features": found.features,
    }
    told: dict[str, Any] = {
        "format": FORMAT,
        "n": found.gaussian.n,
        "network": found.network,
        "what": found.what,
        "identity": found.identity,
        "unreadable": found.unreadable,
        "size": found.size,
        "channels": found.channels,
    }
    storage.put(path, safetensors.numpy.save(arrays, {"imagen": json.dumps(told)}))


def load(path: str) -> Statistics:
    """Read a file of statistics. Raises ConfigError, StorageError."""
    data = storage.get(path)
    try:
        told, arrays = _told(data), safetensors.numpy.load(data)
        if told["format"] != FORMAT:
            raise ValueError(f"it has format {told['format']!r}, not {FORMAT!r}")
        gaussian = Gaussian(arrays["mean"], arrays["scatter"], int(told["n"]))
        return Statistics(
            told["network"],
            told["what"],
            gaussian,
            arrays["features"],
            told["identity"],
            told["unreadable"],
            (int(told["size"][0]), int(told["size"][1])),
            int(told["channels"]),
        )
    except (ValueError, KeyError, safetensors.SafetensorError) as err:
        raise ConfigError(
            f"`{path}` holds no statistics of images: {err}",
            "write it with `python -m eval statistics CONFIG --out FILE`",
        ) from err


def _told(data: bytes) -> dict[str, Any]:
    """Return what a file says of itself: the header's metadata, which `load` does not give."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["imagen"])


def check(path: str, look: Look) -> tuple[Statistics | None, str]:
    """Read statistics that are of a network: of images of that look, or else why they are not.

    Raises ConfigError when they are of another network.
    """
    found = load(path)
    if found.network != look.network:
        raise ConfigError(
            f"eval.features.reference `{path}` is of the network {found.network}, "
            f"eval.features.network is {look.network}",
            "make it again with `python -m eval statistics`, or set eval.features.network",
        )
    if (found.size, found.channels) == (look.shape, look.channels):
        return found, ""
    return None, (
        f"`{path}` is of images of {in_words(*found.size)} px, {found.channels} channels, the "
        f"samples have {in_words(*look.shape)} px, {look.channels} channels"
    )
