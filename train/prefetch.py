"""Keeps local copies of remote shards ahead of a rank: the order tells what it needs next."""

import math
import threading
from typing import Self

from imagen import storage
from imagen.data.shard_cache import NoRoomError, Remote
from imagen.errors import ConfigError, ShardError, StorageError
from train.config import TrainConfig
from train.job import Inputs

_SIZED = 32
"""Most shards that are looked at to tell how large they are."""
_PATIENCE_S = 10.0


def is_remote(inputs: Inputs) -> bool:
    """Tell whether any tar or the embeddings of a run are in a store."""
    folder = None if inputs.embeddings is None else inputs.embeddings.folder
    tars = (shard.tar for shard in inputs.prepared.shards)
    return any(not storage.is_local(path) for path in (*tars, *([folder] if folder else ())))


def remotes(inputs: Inputs, shard: int) -> list[Remote]:
    """Return the remote files of a shard: its tar, its token matrix."""
    sources = [inputs.prepared.remote]
    if inputs.embeddings is not None:
        sources.append(inputs.embeddings.remote)
    found = (remote(shard) for remote in sources)
    return [remote for remote in found if remote is not None]


class Prefetch:
    """A thread that downloads what a rank is going to need, and pins it in the cache."""

    def __init__(self, inputs: Inputs, share: range, steps: range, margin: int) -> None:
        """Prefetch for `share` of each global batch of `steps`.

        `margin`: how many steps the loader may be ahead of the training.
        """
        self.inputs, self.share, self.steps, self.margin = inputs, share, steps, margin
        order = inputs.order
        self.window = math.ceil(order.window * order.lanes / order.global_batch)
        self._known: dict[int, list[Remote]] = {}
        self._there: tuple[list[Remote], list[Remote]] | None = None
        self._damaged = set[Remote]()
        self._step = steps.start
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self.inputs.cache.pin(*self._plan(self._step))  # what cannot fit is told before the start
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_PATIENCE_S)  # a download may take longer: it ends with the process
        self.inputs.cache.unpin()

    def reached(self, step: int) -> None:
        """Tell which step is trained next; raise what the thread has raised."""
        with self._changed:
            self._step = step
            self._changed.notify()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        step = None
        try:
            while (step := self._next(step)) is not None:
                self._follow(step)
        except BaseException as err:
            self._error = err

    def _next(self, last: int | None) -> int | None:
        """Return the step that is trained next once it is another one than `last`; None: end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._step != last)
            return None if self._closed else self._step

    def _follow(self, step: int) -> None:
        """Pin and download what is needed from `step` on: now, then what there is room for."""
        plan = needed, ahead = self._plan(step)
        if plan == self._there:  # and pinned
            return
        self.inputs.cache.pin(needed, ahead)
        for remote in needed:
            if self._closed:
                return
            self.inputs.cache.fetch(remote)
        if self._is_ahead_there(step, ahead):
            self._there = plan

    def _is_ahead_there(self, step: int, ahead: list[Remote]) -> bool:
        """Download what is not needed yet; False: it is tried again at a later step.

        Nothing that fails here ends the training: it may be gone when the file is needed.
        """
        for remote in ahead:
            if self._closed or self._step != step:
                return False
            try:
                if remote not in self._damaged:
                    self.inputs.cache.fetch(remote, needed=False)
            except (NoRoomError, StorageError):
                return False  # room comes when what is needed now has been read
            except ShardError:  # told when it is needed, not downloaded at each step until then
                self._damaged.add(remote)
        return True

    def _plan(self, step: int) -> tuple[list[Remote], list[Remote]]:
        """Return the files that are needed from `step` on, and those of the windows after them."""
        now = self._shards(step, self.margin)
        later = self._shards(step, self.margin + self.window)
        self._known = {
            shard: self._known.get(shard) or remotes(self.inputs, shard) for shard in later
        }
        needed, ahead = now, [shard for shard in later if shard not in set(now)]
        return self._files(needed), self._files(ahead)

    def _shards(self, step: int, steps: int) -> list[int]:
        steps = min(steps, self.steps.stop - step)
        return self.inputs.order.shards_needed(step, self.share.start, self.share.stop, steps)

    def _files(self, shards: list[int]) -> list[Remote]:
        return [remote for shard in shards for remote in self._known[shard]]


def check_room(inputs: Inputs, train: TrainConfig) -> None:
    """Raise ConfigError when the cache cannot hold what it must, or the disk what it may.

    For remote data, on the driver: of the least that a machine needs, a share of the most workers.
    """
    if not is_remote(inputs):
        return
    order, cache = inputs.order, inputs.cache
    shards = order.shards_needed(0, 0, max(1, train.global_batch // train.workers[1]))
    rows = [info.rows for info in inputs.prepared.shards]
    sized = shards[:: math.ceil(len(shards) / _SIZED)]
    files = [remote for shard in sized for remote in remotes(inputs, shard)]
    a_row = sum(file.size for file in files) / sum(rows[shard] for shard in sized)
    needed, total = (a_row * sum(counts) for counts in ([rows[s] for s in shards], rows))
    if needed > cache.limit_bytes:
        raise ConfigError(
            f"cache_gb {train.cache_gb:g} is less than what a worker needs at once: "
            f"{len(shards)} shards, {needed / 1e9:,.3g} GB",
            "raise cache_gb, or lower window or lanes (another order of the samples)",
        )
    takes = min(total, cache.limit_bytes)
    if takes > (room := cache.room_bytes()):
        raise ConfigError(
            f"cache_gb {train.cache_gb:g} lets copies of remote shards take {takes / 1e9:,.3g} GB, "
            f"but there is room for {room / 1e9:,.3g} GB in `{cache.folder}`",
            "lower cache_gb, or set TMPDIR to a folder on a larger disk",
        )
