"""The held-out samples that snapshots are validated on and drawn for: chosen once, read in place.

Which samples these are is a pure function of the data set and the seed, so that all snapshots of a
run are held against the same. They are read by byte ranges, also from a store: a few hundred
pictures and captions are not worth copies of whole shards.
"""

import functools
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imagen import manifest, storage
from imagen.data.embeddings import EmbeddingSet, open_part
from imagen.data.images import TooSmallError, decode
from imagen.data.index import manifest_path
from imagen.data.order import permutation
from imagen.data.prepared import Prepared
from imagen.data.resize import open_set
from imagen.data.samples import Bad
from imagen.errors import ShardError
from train.config import TrainStageConfig

SPREAD = 8
"""Shards, at least, that the samples come from: neighbours in a data set may be alike."""
_SHARDS = 80
"""Of the draw of shards, beside the purposes of imagen.data.randomness."""

Planes = tuple[npt.NDArray[np.uint8], ...]
Place = tuple[int, int]


def choose(prepared: Prepared, count: int, seed: int) -> list[Place]:
    """Return (shard, row) of `count` held-out samples, fewer when there are no more.

    They are the first by a hash of their keys, out of the first shards by a hash of the seed.
    """
    shards: list[int] = []
    for shard in permutation(len(prepared.shards), seed, _SHARDS).tolist():
        if len(shards) >= SPREAD and sum(prepared.shards[s].heldout for s in shards) >= count:
            break
        if prepared.shards[shard].heldout:
            shards.append(shard)
    places = [(s, int(row)) for s in shards for row in prepared.rows(s, "heldout")]
    return sorted(places, key=lambda place: _rank(bytes(prepared.keys(place[0])[place[1]]), seed))[
        :count
    ]


def _rank(key: bytes, seed: int) -> bytes:
    # by another hash than the one that decides what is held out: its smallest are in each split
    return hashlib.sha256(b"%d/%s" % (seed, key)).digest()


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out sample as a member sees it."""

    number: int
    """Among the chosen ones; decides its draws."""
    planes: Planes
    """uint8 (c, h, w): the picture and, of super-resolution members, its low-resolution picture."""
    tokens: npt.NDArray[np.float16] | None
    """Embedding of its caption (l, d); None for members without text."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The chosen samples of a data set, for one member."""

    prepared: Prepared
    tokens: "Tokens | None"
    places: list[Place]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of the pictures, and of the low-resolution pictures if there are any."""
    channels: int

    @classmethod
    def open(cls, config: TrainStageConfig, member: str, count: int) -> "HeldOut":
        """Choose `count` samples for a member. Raises ShardError, StorageError."""
        network, lowres = config.members[member].network, config.previous_shape(member)
        prepared = Prepared.open(config.index)
        if config.data.prepare:
            prepared = open_set(config.prepared_dir(member), prepared, config.target(member))
        tokens = None
        if network.text_dim:
            tokens = Tokens(EmbeddingSet.find(config.embeddings, config.text, prepared))
        sizes = [config.members[member].shape, *([lowres] if lowres is not None else [])]
        places = choose(prepared, count, config.seed)
        return cls(prepared, tokens, places, tuple(sizes), network.channels)

    def read(self, number: int) -> Sample | Bad:
        """Return a chosen sample, or why it cannot be used.

        Raises ShardError when its tar has changed since it was indexed.
        """
        shard, row = self.places[number]
        encoded = self.prepared.image(shard, row)
        try:
            planes = decode(encoded, self.sizes, self.channels)
        except ShardError as err:
            reason = "too_small" if isinstance(err, TooSmallError) else "unreadable"
            return Bad(self.prepared.key(shard, row), reason, err.message)
        return Sample(number, planes, None if self.tokens is None else self.tokens(shard, row))

    def caption(self, number: int) -> str:
        """Return the caption of a sample as it stands in the tar."""
        return self.prepared.caption(*self.places[number])


class Tokens:
    """Embeddings of single captions: memory-mapped, or by byte ranges from a store."""

    def __init__(self, embeddings: EmbeddingSet) -> None:
        self.embeddings = embeddings
        self._shard = functools.lru_cache(SPREAD)(self._open)

    def __call__(self, shard: int, row: int) -> npt.NDArray[np.float16]:
        """Return the embedding (l, d) of a sample's caption."""
        folder = self.embeddings.folder
        if storage.is_local(folder):
            return self.embeddings.tokens(shard, row)
        body, offsets, slots = self._shard(shard)
        first, last = (int(offset) for offset in offsets[slots[row] : slots[row] + 2])
        width, path = 2 * body["dim"], storage.join(folder, f"{body['shard']}.tokens.npy")
        start = _data_start(path) + first * width
        data = storage.get_range(path, start, (last - first) * width)
        return np.frombuffer(data, np.float16).reshape(last - first, body["dim"])

    def _open(self, shard: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Return manifest, offsets and slots of a shard on a store."""
        folder, name = self.embeddings.folder, self.embeddings.names[shard]
        body = manifest.read(manifest_path(folder, name), "embeddings")
        if body["digest"] != self.embeddings.digests[name]:
            raise ShardError(
                f"shard {name} in `{folder}` is of other captions than the set of shards",
                "run `python -m preencode CONFIG` with this config",
            )
        return body, open_part(folder, body, "offsets"), open_part(folder, body, "slots")


@functools.lru_cache(SPREAD)
def _data_start(path: str) -> int:
    """Return where the values of a `.npy` file begin."""
    header = io.BytesIO(storage.get_range(path, 0, 128))
    np.lib.format.read_magic(header)
    np.lib.format.read_array_header_1_0(header)
    return header.tell()
