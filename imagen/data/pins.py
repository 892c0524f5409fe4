"""What the processes of a machine keep in a cache: a file of each, locked as long as it lives."""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imagen import store


@dataclass(slots=True)
class Kept:
    """Names of the files that living processes need now, and next; the largest of their limits."""

    now: set[str] = field(default_factory=set)
    ahead: set[str] = field(default_factory=set)
    limit_bytes: int = 0


class Pins:
    """A folder of what processes keep. For those who hold the lock of the cache."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._handle: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def write(self, needed: Sequence[str], ahead: Sequence[str], limit_bytes: int) -> None:
        """Keep these files for this process, instead of those it kept before."""
        lists = {"needed": needed, "ahead": ahead, "limit": limit_bytes}
        body = json.dumps(lists).encode()
        with store.explained("write", self.folder):
            if self._handle is None:
                os.makedirs(self.folder, exist_ok=True)
                self._handle = claim(f"{self.folder}/{os.getpid()}-{uuid.uuid4().hex[:8]}.json")
            os.posix_fallocate(self._handle, 0, len(body))  # a full disk is told before they change
            os.pwrite(self._handle, body, 0)
            os.ftruncate(self._handle, len(body))

    def clear(self) -> None:
        """Let go of what this process keeps."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def read(self) -> Kept:
        """Return what the living processes keep; delete what the others have left."""
        kept = Kept()
        with store.explained("read", self.folder):
            names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
            for name in names:
                path = os.path.join(self.folder, name)
                if name.endswith(".json") and not unlink_unlocked(path):
                    _add(kept, path)
        kept.ahead -= kept.now
        return kept


def _add(kept: Kept, path: str) -> None:
    """Add what a process keeps: nothing when it could not write that to the end."""
    with open(path, "rb") as file, contextlib.suppress(ValueError, KeyError, TypeError):
        lists = json.loads(file.read())
        now, ahead, limit = set(lists["needed"]), set(lists["ahead"]), int(lists["limit"])
        kept.now |= now
        kept.ahead |= ahead
        kept.limit_bytes = max(kept.limit_bytes, limit)


def claim(path: str) -> int:
    """Make a file that is locked until this process closes the handle, or ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def unlink_unlocked(path: str) -> bool:
    """Delete a file unless somebody holds its lock; tell whether it is gone."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
