"""Images of finished chunks, read a chunk at a time: there may be more than fit into memory."""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

import numpy as np
import safetensors.numpy

from eval.sampling import CHUNK_IMAGES, Chunk
from imagen import storage

_THREADS = 8
"""Chunks that are read at once."""
_AHEAD = 4
"""Chunks that are read before they are asked for, where they are asked for one after another."""
_KEPT = 16
"""Chunks in memory: those of a block of `eval.score`, which goes through its members one by one."""

Arrays = dict[str, np.ndarray]


class Chunks:
    """The chunks of an evaluation, which all members look into; those that come next are read."""

    def __init__(self, work: Sequence[Chunk]) -> None:
        self.work = work
        self._found: OrderedDict[int, Future[Arrays]] = OrderedDict()
        self._last = -1

    def __call__(self, number: int) -> Arrays:
        """Return the arrays of a chunk by member."""
        ahead = _AHEAD if number == self._last + 1 else 0
        for wanted in range(min(number + ahead, len(self.work) - 1), number - 1, -1):
            if wanted not in self._found:
                self._found[wanted] = _pool().submit(_arrays, self.work[wanted].path)
            self._found.move_to_end(wanted)
        self._last = number
        while len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return self._found[number].result()


class ChunkImages(Sequence[np.ndarray]):
    """One member's images in the order of the items, uint8 (h, w, c)."""

    def __init__(self, chunks: Chunks, member: str) -> None:
        self._chunks, self._member = chunks, member
        self._length = sum(len(chunk.items) for chunk in chunks.work)

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
        return self._chunks(chunk)[self._member][row].transpose(1, 2, 0)


def features(work: Sequence[Chunk], names: str) -> Arrays:
    """Return what the extractor named by its fingerprint found, float32 (n, d) by array name.

    {} where `names` is empty: there is no extractor.
    """
    if not names:
        return {}
    parts = list(_pool().map(_arrays, [chunk.features(names) for chunk in work]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _arrays(path: str) -> Arrays:
    return safetensors.numpy.load(storage.get(path))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "chunks")
