"""Which samples make up global batch k: a pure function of (shard sizes, seed, k).

Every epoch the shards are permuted and strung together, the string is rotated, and the rotated
string is cut into equal lanes. A lane shuffles inside windows. A global batch is the next slice of
every lane, lane-major; a rank takes a contiguous slice of it. So neither the world size nor the
number of workers nor a restart changes a batch, and a rank reads little more than its own lanes'
shards. The tail, smaller than one global batch plus the lanes, is left out; the rotation makes it a
different one each epoch.

Numbers come from an own integer hash and a stable sort, because library shuffles are not frozen.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from imagen.errors import ConfigError

VERSION = 1
"""Part of a run's identity: a change of the arithmetic below makes old checkpoints unresumable."""

_ROTATION, _SHARDS, _WINDOW = 1, 2, 3

Int64 = npt.NDArray[np.int64]


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the splitmix64 hash of each element (Steele, Lea & Flood 2014; wraps mod 2^64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_key(*parts: int) -> np.uint64:
    """Return one 64-bit hash of a sequence of non-negative integers."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ splitmix64(np.array([part], np.uint64)))
    return state[0]


def permutation(count: int, *key: int) -> Int64:
    """Return the permutation of range(count) that belongs to `key`."""
    return np.argsort(splitmix64(np.arange(count, dtype=np.uint64) ^ hash_key(*key)), kind="stable")


def rank_slice(global_batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return [start, stop) of a rank's share of a global batch; shares differ by at most one."""
    return rank * global_batch // world_size, (rank + 1) * global_batch // world_size


@dataclass(frozen=True)
class _Epoch:
    """One epoch's string of shards: `shards` in order, `starts` of each in the string, rotation."""

    shards: Int64
    starts: Int64
    rotation: int


class Order:
    """The elastic order of a data set. O(shards) memory, O(1) seek."""

    def __init__(
        self, shard_sizes: list[int], seed: int, lanes: int, window: int, global_batch: int
    ) -> None:
        check(sum(shard_sizes), lanes, window, global_batch)
        self.shard_sizes = np.asarray(shard_sizes, np.int64)
        self.seed, self.lanes, self.window, self.global_batch = seed, lanes, window, global_batch
        self.samples = int(self.shard_sizes.sum())
        self.lane_length = self.samples // lanes
        self.steps_per_epoch = self.lane_length // (global_batch // lanes)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._shuffled = lru_cache(maxsize=2 * lanes)(self._make_window)

    def __reduce__(self) -> tuple:
        sizes = self.shard_sizes.tolist()
        return Order, (sizes, self.seed, self.lanes, self.window, self.global_batch)

    def batch(self, step: int) -> tuple[Int64, Int64]:
        """Return (shard (B,), row among the shard's training rows (B,)) of global batch `step`."""
        return self.part(step, 0, self.global_batch)

    def part(self, step: int, start: int, stop: int) -> tuple[Int64, Int64]:
        """Return elements [start, stop) of `batch(step)`, reading only the lanes they are in."""
        epoch, at = divmod(step, self.steps_per_epoch)
        index = np.arange(start, stop, dtype=np.int64)
        share = self.global_batch // self.lanes
        lane, within = index // share, index % share + at * share
        return self._locate(epoch, lane * self.lane_length + self._lane(epoch, lane, within))

    def shards_needed(self, step: int, start: int, stop: int, steps: int = 1) -> list[int]:
        """Return the shards of elements [start, stop) of `steps` batches from `step` on.

        All that their windows are drawn from, in the order in which they are come to.
        """
        found: dict[int, None] = {}
        share = self.global_batch // self.lanes
        lanes = range(start // share, -(-stop // share))
        while steps > 0:
            epoch, at = divmod(step, self.steps_per_epoch)
            until = min(at + steps, self.steps_per_epoch)
            for window in range(at * share // self.window, -(-until * share // self.window)):
                for lane in lanes:
                    found.update(dict.fromkeys(self._of_window(epoch, lane, window)))
            step, steps = step + until - at, steps - (until - at)
        return list(found)

    def _of_window(self, epoch: int, lane: int, window: int) -> list[int]:
        """Return the shards of one window of a lane, in the order of the epoch's string."""
        string = self._epoch(epoch)
        first = (lane * self.lane_length + window * self.window + string.rotation) % self.samples
        last = first + min(self.window, self.lane_length - window * self.window) - 1
        ends = [(first, min(last, self.samples - 1)), (0, last - self.samples)]
        found: list[int] = []
        for low, high in ends:  # the second where the string ends inside the window
            if low <= high:
                a, b = np.searchsorted(string.starts, [low, high], side="right") - 1
                found += string.shards[a : b + 1].tolist()
        return [shard for shard in found if self.shard_sizes[shard]]

    def _lane(self, epoch: int, lane: Int64, within: Int64) -> Int64:
        """Return where the lanes' windowed shuffles send positions `within`, (n,) -> (n,)."""
        window = within // self.window
        out = np.empty_like(within)
        for one, win in {(int(a), int(b)) for a, b in zip(lane, window, strict=True)}:
            mine = (lane == one) & (window == win)
            shuffled = self._shuffled(epoch, one, win)
            out[mine] = win * self.window + shuffled[within[mine] - win * self.window]
        return out

    def _make_window(self, epoch: int, lane: int, window: int) -> Int64:
        count = min(self.window, self.lane_length - window * self.window)
        return permutation(count, self.seed, epoch, _WINDOW, lane, window)

    def _make_epoch(self, epoch: int) -> _Epoch:
        shards = permutation(len(self.shard_sizes), self.seed, epoch, _SHARDS)
        starts = np.cumsum(self.shard_sizes[shards]) - self.shard_sizes[shards]
        rotation = int(hash_key(self.seed, epoch, _ROTATION)) % self.samples
        return _Epoch(shards, starts, rotation)

    def _locate(self, epoch: int, position: Int64) -> tuple[Int64, Int64]:
        """Return (shard, row) of positions in the epoch's rotated string."""
        string = self._epoch(epoch)
        position = (position + string.rotation) % self.samples
        # empty shards share their start with the next one; "right" skips them
        at = np.searchsorted(string.starts, position, side="right") - 1
        return string.shards[at], position - string.starts[at]


def check(samples: int, lanes: int, window: int, global_batch: int) -> None:
    """Raise ConfigError unless an order of `samples` samples can be made."""
    if min(lanes, window, global_batch) < 1:
        raise ConfigError(
            f"lanes {lanes}, window {window} and global_batch {global_batch} must be at least 1"
        )
    if global_batch % lanes:
        raise ConfigError(
            f"global_batch {global_batch} is no multiple of lanes {lanes}",
            "every lane gives the same number of samples to a global batch",
        )
    if samples // lanes < global_batch // lanes:
        raise ConfigError(
            f"global_batch {global_batch} with {lanes} lanes does not fit into an epoch of "
            f"{samples} training samples",
            "lower global_batch, or bring in more images",
        )
