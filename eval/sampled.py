"""Images of finished chunks, read a chunk at a time: there may be more than fit into memory."""

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import numpy as np
import safetensors.numpy

from eval.sampling import CHUNK_IMAGES, Chunk
from imagen import storage


class ChunkImages(Sequence[np.ndarray]):
    """One member's images in the order of the items, uint8 (h, w, c)."""

    def __init__(self, work: Sequence[Chunk], member: str) -> None:
        self._work, self._member = work, member
        self._length = sum(len(chunk.items) for chunk in work)
        self._read = lru_cache(maxsize=1)(self._read_chunk)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, i: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self._length))]
        if not -self._length <= i < self._length:
            raise IndexError(i)
        chunk, row = divmod(i % self._length, CHUNK_IMAGES)
        return self._read(chunk)[row]

    def _read_chunk(self, number: int) -> np.ndarray:
        arrays = safetensors.numpy.load(storage.get(self._work[number].path))
        return arrays[self._member].transpose(0, 2, 3, 1)


def features(work: Sequence[Chunk], names: str) -> dict[str, np.ndarray]:
    """Return what the extractor named by its fingerprint found, float32 (n, d) by array name.

    {} where `names` is empty: there is no extractor.
    """
    if not names:
        return {}
    parts = [safetensors.numpy.load(storage.get(chunk.features(names))) for chunk in work]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
