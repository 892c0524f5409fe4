"""What a stage has done so far, and the lock that keeps two runs out of one folder."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from imagen import storage
from imagen.errors import StorageError

Status = Literal["done", "stale", "running", "missing", "partial"]

LOCK = ".lock"
PATIENCE_S = 0.5
"""How long `lock` tries: `is_locked` of another process holds the lock for an instant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageState:
    """How far one stage has come, as its files tell."""

    stage: str
    """Name of the stage, for example `import` or `train base`."""
    status: Status
    """done; stale (done for other inputs); running (locked); partial (some work left); missing."""
    detail: str
    """One line for people: what is there, or what is missing."""
    outputs: tuple[str, ...] = ()
    """Paths or URLs of what the stage makes."""


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """Hold a folder for this process; the kernel lets go when the process ends, however it ends.

    A remote folder has no lock: two runs there do the same work, whose files are the same or have
    names of their own, and the last manifest wins.
    Raises StorageError naming the process that holds the folder.
    """
    if not storage.is_local(folder):
        yield
        return
    os.makedirs(storage.local(folder), exist_ok=True)
    handle = os.open(storage.join(storage.local(folder), LOCK), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(handle, folder)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, folder: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _try(handle):
        if time.monotonic() > deadline:
            pid = os.pread(handle, 32, 0).decode() or "unknown"
            raise StorageError(
                f"`{folder}` is in use by process {pid}",
                f"wait for it, or stop it with `kill {pid}`; what it finished is kept",
            )
        time.sleep(0.02)


def _try(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(folder: str) -> int | None:
    """Return the id of the process that holds a folder, None when nobody does."""
    path = storage.join(storage.local(folder), LOCK)
    if not storage.is_local(folder) or not os.path.exists(path):
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        # shared: those who only look never take each other for the holder
        return None if _try(handle, fcntl.LOCK_SH) else int(os.pread(handle, 32, 0) or b"0")
    finally:
        os.close(handle)
