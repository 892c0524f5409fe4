"""Which shards a process has open, and files that stay open while they are read."""

import os
import resource
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from imagen import store
from imagen.errors import StorageError

OPEN_SHARDS = 256
"""Shards whose arrays a process keeps open, those used last, unless it is told of more."""


class Shard(Protocol):
    """What is open of one shard."""

    def is_evicted(self) -> bool:
        """Tell whether its local copy has been deleted; its room is free once it is closed."""
        ...


S = TypeVar("S", bound=Shard)


class OpenShards(Generic[S]):
    """The shards of a data set that a process has open; another process opens its own."""

    def __init__(self, opener: Callable[[int], S]) -> None:
        self._opener = opener
        self._open: dict[int, S] = {}
        self._last: tuple[int, S] | None = None
        self._limit = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._opener,)

    def __call__(self, shard: int) -> S:
        """Return a shard, opened when it is first used."""
        if self._last is not None and self._last[0] == shard:
            return self._last[1]
        found = self._open.pop(shard, None)
        if found is None:
            self._last = None
            self._make_room()
            found = self._opener(shard)
        self._open[shard] = found  # last: used last
        self._last = shard, found
        return found

    def __len__(self) -> int:
        return len(self._open)

    def keep(self, count: int) -> None:
        """Keep up to `count` shards open, if that is more than usual; close those evicted.

        No more than half of the files that the process may have open.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = files // 2 if files != resource.RLIM_INFINITY else count
        self._limit = min(count, most)
        self._close_evicted()

    def _close_evicted(self) -> None:
        self._open = {n: s for n, s in self._open.items() if not s.is_evicted()}
        if self._last is not None and self._last[0] not in self._open:
            self._last = None

    def _make_room(self) -> None:
        """Close what was evicted, and what was used longest ago."""
        self._close_evicted()
        while len(self._open) >= max(OPEN_SHARDS, self._limit):
            del self._open[next(iter(self._open))]


class OpenFile:
    """A local file that stays open: reading goes on where another file takes its name."""

    def __init__(self, path: str) -> None:
        self.path = path
        with store.explained("read", path):
            self._handle = os.open(store.local(path), os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def size(self) -> int:
        """Return its size in bytes."""
        return os.fstat(self._handle).st_size

    def is_deleted(self) -> bool:
        """Tell whether it has no name any more."""
        return os.fstat(self._handle).st_nlink == 0

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start`. Raises StorageError."""
        try:
            data = os.pread(self._handle, size, start)
        except OSError:
            with store.explained("read", self.path):
                raise
        if len(data) != size:
            raise StorageError(
                f"`{self.path}` ends at byte {start + len(data)}, not at {start + size}"
            )
        return data
