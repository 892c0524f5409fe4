"""Counter-based randomness: each draw of each sample is a pure function of where it stands.

Threefry-2x32-20 (Salmon et al., SC 2011; Random123) keyed by (seed, purpose, position), turned into
normals by Box-Muller in float64 and rounded to float32. Written with 32-bit adds, rotations and
xors only, so that another language (export/web) draws the same numbers.

```
key     = (seed, purpose << 16 | position >> 32)      position < 2^48
counter = (block, position & 0xffffffff)              block i gives values 2i and 2i + 1
```
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

from imagen.data.order import permutation

UInt32 = npt.NDArray[np.uint32]

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
_CHUNK = 1 << 15  # pairs of values of one pass: its few temporaries stay in the cache
_THREADS_MOST = 8


class Purpose(IntEnum):
    """What a draw is for. Training: position of the sample in the run; sampling: its seed."""

    NOISE = 0
    TIME = 1
    DROP = 2
    FLIP = 3
    CROP = 4
    AUG_LEVEL = 5
    AUG_NOISE = 6
    TIME_ORDER = 7
    SELF_COND = 8
    SAMPLE = 16
    """Initial noise; + index of the member in its cascade, as the next two."""
    SAMPLE_AUG = 32
    SAMPLE_STEP = 48


def threefry(key: tuple[UInt32, UInt32], counter: tuple[UInt32, UInt32]) -> tuple[UInt32, UInt32]:
    """Return the two Threefry-2x32-20 words of each counter; all arrays of one shape."""
    schedule = (key[0], key[1], _PARITY ^ key[0] ^ key[1])
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for rounds in range(20):
        x0 += x1
        rotation = np.uint32(_ROTATIONS[rounds % 8])
        x1 = (x1 << rotation) | (x1 >> (np.uint32(32) - rotation))
        x1 ^= x0
        if rounds % 4 == 3:
            inject = rounds // 4 + 1
            x0 += schedule[inject % 3]
            x1 += schedule[(inject + 1) % 3] + np.uint32(inject)
    return x0, x1


def _words(
    seed: int, purpose: int, positions: npt.ArrayLike, blocks: npt.NDArray[np.uint32]
) -> tuple[UInt32, UInt32]:
    """Return the words (n, m) of `blocks` (m,) at `positions` (n,)."""
    at = np.asarray(positions, np.uint64)
    assert at.ndim == 1, "positions are (n,)"
    assert not (at >> np.uint64(48)).any(), "positions are below 2^48"
    high = np.uint32(purpose << 16) | (at >> np.uint64(32)).astype(np.uint32)
    low = (at & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    shape = (len(at), len(blocks))
    key = (np.full(shape, seed, np.uint32), np.broadcast_to(high[:, None], shape))
    counter = (np.broadcast_to(blocks, shape), np.broadcast_to(low[:, None], shape))
    return threefry(key, counter)


def normals(
    seed: int, purpose: int, positions: npt.ArrayLike, count: int
) -> npt.NDArray[np.float32]:
    """Return `count` standard normals for each position, float32 (n, count).

    Many are drawn by as many threads as torch has here; the numbers do not depend on that.
    """
    positions = np.asarray(positions, np.uint64)
    pairs = (count + 1) // 2
    out = np.empty((len(positions), 2 * pairs), np.float32)
    rows = max(1, _CHUNK // max(1, pairs))

    def fill(row: int, start: int) -> None:
        blocks = np.arange(start, min(start + _CHUNK, pairs), dtype=np.uint32)
        some = positions[row : row + rows]
        z = _box_muller(*_words(seed, purpose, some, blocks))
        out[row : row + rows, 2 * start : 2 * start + 2 * len(blocks)] = z

    _each(fill, [(r, s) for r in range(0, len(positions), rows) for s in range(0, pairs, _CHUNK)])
    return out[:, :count]


def _each(fill: Callable[[int, int], None], parts: Sequence[tuple[int, int]]) -> None:
    """Fill all parts, each by one thread: numpy lets others run while it computes.

    The threads end with the call, so that a process that forks afterwards has none.
    """
    threads = min(len(parts), torch.get_num_threads(), _THREADS_MOST)
    if threads < 2:
        for part in parts:
            fill(*part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, *zip(*parts, strict=True)):  # raises what a thread has raised
            pass


def _box_muller(first: UInt32, second: UInt32) -> npt.NDArray[np.float32]:
    """Return two normals for each pair of words, interleaved: (n, m), (n, m) -> (n, 2m)."""
    radius = np.sqrt(-2.0 * np.log((first + 0.5) * 2.0**-32))  # float64; + 0.5 keeps log finite
    angle = (second * 2.0**-32) * (2.0 * np.pi)
    out = np.empty((*first.shape, 2), np.float32)
    np.multiply(radius, np.cos(angle), out=out[..., 0], casting="same_kind")
    np.multiply(radius, np.sin(angle), out=out[..., 1], casting="same_kind")
    return out.reshape(len(first), -1)


def uniforms(seed: int, purpose: int, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return one uniform in [0, 1) with 53 bits for each position, float64 (n,)."""
    first, second = _words(seed, purpose, positions, np.zeros(1, np.uint32))
    high, low = (first[:, 0] >> np.uint32(5)).astype(np.float64), second[:, 0] >> np.uint32(6)
    return (high * 2.0**26 + low).astype(np.float64) * 2.0**-53


def strata(seed: int, step: int, global_batch: int) -> npt.NDArray[np.float64]:
    """Return the times of a global batch, float64 (B,) in (0, 1): one in each of B equal strata.

    Stratifying lowers the variance of the loss as in Variational Diffusion Models (Kingma et al.,
    arXiv:2107.00630, App. I.1), with independent draws inside the strata.
    """
    positions = np.arange(step * global_batch, (step + 1) * global_batch, dtype=np.uint64)
    inside = uniforms(seed, Purpose.TIME, positions)
    order = permutation(global_batch, seed, step, Purpose.TIME_ORDER)
    times = np.minimum((order + inside) / global_batch + 2.0**-54, 1 - 2.0**-53)
    return times.astype(np.float64, copy=False)
