"""Real images to measure against: training images, and held-out ones as the measure of newness."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from eval.features import evenly, resized
from imagen.data import digits, shard_cache
from imagen.data.images import Size, decode
from imagen.data.prepared import Prepared, Split
from imagen.data.shard_cache import ShardCache
from imagen.errors import ShardError

MOST_TRAINING = 20_000
MOST_HELDOUT = 2_000
"""Larger data sets are represented by that many images, evenly spread over shards and rows."""


_SPARSE = 10
_CACHE_BYTES = 50 * 10**9


@dataclass(frozen=True, slots=True)
class Reference:
    """Images of one split, uint8 (SIDE, SIDE, c), with their captions."""

    images: list[np.ndarray]
    captions: list[str]
    where: list[tuple[int, int]]
    """Shard and row of each image."""
    total: int
    """Images in the split, of which `images` are all or an even selection."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Images that could not be decoded, by reason."""

    def labels(self) -> list[int]:
        """Return the digit of each caption. Raises ShardError when one speaks of no digit."""
        return [_digit(caption) for caption in self.captions]


def open_data(index_dir: str) -> Prepared:
    """Open a data set to read a reference from it.

    Where most images of remote tars will be read the tars are copied, one request a tar; of a data
    set that is much larger each image is asked for by itself.
    """
    prepared = Prepared.open(index_dir)
    if sum(shard.rows for shard in prepared.shards) > _SPARSE * MOST_TRAINING:
        return prepared
    return Prepared.open(index_dir, ShardCache(shard_cache.FOLDER, _CACHE_BYTES))


def load(prepared: Prepared, split: Split, size: Size, channels: int) -> Reference:
    """Read a split's images as a member of `size` knows them, reduced to compare them."""
    most = MOST_TRAINING if split == "train" else MOST_HELDOUT
    where = [(s, int(row)) for s in range(len(prepared.shards)) for row in prepared.rows(s, split)]
    chosen = evenly(where, most)
    reference = Reference([], [], [], len(where))
    for shard, row in chosen:
        encoded = prepared.image(shard, row)  # a tar that has changed is an error
        try:
            (planes,) = decode(encoded, (size,), channels)
        except ShardError as err:
            reference.unreadable[err.message] += 1
            continue
        reference.images.append(resized(planes.transpose(1, 2, 0)))
        reference.where.append((shard, row))
        reference.captions.append(prepared.caption(shard, row))
    return reference


def _digit(caption: str) -> int:
    try:
        return digits.digit_of(caption)
    except ValueError as err:
        raise ShardError(
            f"the judge of digits was given an image with the caption {caption!r}",
            "set eval.judge=none for data that is not of digits",
        ) from err
