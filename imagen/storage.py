"""The storage seam: every byte the system reads or writes at a path or URL passes here.

Paths are local or any fsspec URL (`gs://`, `s3://`, `memory://`). Files are published whole: on a
local disk through a temporary file, fsync and rename; on an object store by uploading finished
bytes. Nothing is ever published through an open file handle, because an exception inside
`with fs.open(path, "wb")` makes gcsfs commit the truncated object.

What a store refuses for a while is tried again by each function here, see imagen/retrying.py. What
is in a store is looked at by imagen/objects.py.
"""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from imagen import objects
from imagen.checksum import crc32c as crc32c  # parts of this seam
from imagen.checksum import crc32c_file as crc32c_file
from imagen.checksum import crc32c_of as crc32c_of
from imagen.errors import StorageError
from imagen.objects import Entry as Entry
from imagen.retrying import patiently
from imagen.store import TEMP_MARK, explained, filesystem, is_local, local
from imagen.store import join as join
from imagen.store import name as name

T = TypeVar("T")


def _asked(action: str, path: str, ask: Callable[[Any, str], T]) -> T:
    """Return what `ask` returns of a store's file system and the path in it; insist on it."""

    def once() -> T:
        with explained(action, path):
            return ask(*filesystem(path))

    return patiently(once, path)


def get(path: str) -> bytes:
    """Return the bytes of a file. Raises StorageError."""
    if not is_local(path):
        return _asked("read", path, lambda fs, inner: fs.cat_file(inner))
    with explained("read", path), open(local(path), "rb") as file:
        return file.read()


def get_if_there(path: str) -> bytes | None:
    """Return the bytes of a file, None when there is none; `exists` would be a request more."""
    try:
        return get(path)
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return None
        raise


def get_range(path: str, start: int, size: int) -> bytes:
    """Return `size` bytes from byte `start`. Raises StorageError, also when the file is shorter."""
    if is_local(path):
        with explained("read", path), open(local(path), "rb") as file:
            data = os.pread(file.fileno(), size, start)
    else:
        end = start + size
        data = _asked("read", path, lambda fs, inner: fs.cat_file(inner, start=start, end=end))
    if len(data) != size:
        ends = f"ends at byte {start + len(data)}" if data else f"ends before byte {start + 1}"
        raise StorageError(f"`{path}` {ends}, not at {start + size}")
    return data


def put(path: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Publish `data` at `path`, whole or not at all, and durably.

    With `if_absent` an existing file stays as it is. True means that the file now holds exactly
    `data`, whoever wrote it: a store whose answer was lost cannot tell our own upload from another
    one with the same bytes. So writers that race put something of their own into `data`. False
    means that the file holds something else.
    """
    if is_local(path):
        with explained("write", path):
            written = _put_local(local(path), data, if_absent)
    else:
        written = _asked("write", path, lambda fs, p: objects.put(fs, p, data, if_absent))
    return written or get_if_there(path) == data


def _put_local(path: str, data: bytes, if_absent: bool) -> bool:
    """Return False when `if_absent` and the file is there."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temp = f"{path}{TEMP_MARK}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with open(temp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return publish_local(temp, path, if_absent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)


def publish_local(temp: str, path: str, if_absent: bool) -> bool:
    """Give a finished local file its name, durably; False when `if_absent` and it is taken."""
    if if_absent:
        try:
            os.link(temp, path)  # the only local operation that creates exclusively and whole
        except FileExistsError:
            return False
    else:
        _make_newer(temp, path)
        os.replace(temp, path)
    _sync_folder(os.path.dirname(path) or ".")
    return True


def _make_newer(temp: str, path: str) -> None:
    """Let a file be newer than the one it replaces: disks keep times in ticks of milliseconds."""
    with contextlib.suppress(FileNotFoundError):
        old, new = os.stat(path).st_mtime_ns, os.stat(temp)
        if new.st_mtime_ns <= old < new.st_mtime_ns + 10**9:
            os.utime(temp, ns=(new.st_atime_ns, old + 1))


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: str, data: bytes, version: str | None) -> bool:
    """Publish `data` at `path` if the file still has the `version` that was read; None: no file.

    For what several may change: read `version`, then the file, then replace it. True means that
    the file holds exactly `data`, as `put` has it; False that another one came first. Stores other
    than `gs://` look and then write: a writer between the two loses.
    """
    if version is None:
        return put(path, data, if_absent=True)
    if is_local(path):
        with explained("write", path):
            written = _replace_local(local(path), data, version)
    else:
        written = _asked("write", path, lambda fs, p: objects.replace(fs, p, data, version))
    return written or get_if_there(path) == data


def _replace_local(path: str, data: bytes, version: str) -> bool:
    """Return False when the file has another version; the folder is locked meanwhile."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        return _local_version(path) == version and _put_local(path, data, if_absent=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)


def exists(path: str) -> bool:
    """Tell whether a file is there, past every listing cache."""
    if not is_local(path):
        return _asked("look up", path, objects.is_file)
    with explained("look up", path):
        return os.path.isfile(local(path))


def size(path: str) -> int:
    """Return the size of a file in bytes. Raises StorageError when it does not exist."""
    if not is_local(path):
        return _asked("look up", path, lambda fs, inner: int(fs.info(inner)["size"]))
    with explained("look up", path):
        return os.stat(local(path)).st_size


def version(path: str) -> str:
    """Return a text that changes when the file is replaced, found without reading it.

    Size and time of change on a local disk, size and the store's own tag elsewhere.
    """
    if not is_local(path):
        return _asked("look up", path, lambda fs, inner: objects.version(fs.info(inner)))
    with explained("look up", path):
        return _local_version(local(path))


def _local_version(path: str) -> str:
    return _version(os.stat(path))


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def version_if_there(path: str) -> str | None:
    """Return the `version` of a file, None when there is none: what `replace` wants."""
    try:
        return version(path)
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return None
        raise


def listdir(path: str) -> list[str]:
    """Return the sorted names in a folder, temporary files left out; [] when there is none."""
    if not is_local(path):
        names = _asked("list", path, objects.names)
    else:
        with explained("list", path):
            names = os.listdir(local(path)) if os.path.isdir(local(path)) else []
    return sorted(n for n in names if n and TEMP_MARK not in n)


def scan(path: str) -> dict[str, Entry]:
    """Return the files of a folder by name, sorted, from one listing; {} when there is none.

    A store is asked once for a page of names, not once for each file. Temporary files are left out.
    """
    if not is_local(path):
        found = _asked("list", path, objects.scan)
    else:
        with explained("list", path):
            found = _scan_local(local(path))
    return {n: found[n] for n in sorted(found) if n and TEMP_MARK not in n}


def sizes(path: str) -> dict[str, int]:
    """Return the sizes of the files of a folder by name: `scan` without versions."""
    if not is_local(path):
        return {n: entry.size for n, entry in scan(path).items()}
    with explained("list", path):
        return {n: stat.st_size for n, stat in _stats(local(path)) if TEMP_MARK not in n}


def _scan_local(path: str) -> dict[str, Entry]:
    return {n: Entry(stat.st_size, _version(stat)) for n, stat in _stats(path)}


def _stats(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name, stat) of the files in a local folder; nothing when there is no such folder."""
    if not os.path.isdir(path):
        return
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    yield entry.name, entry.stat()
            except FileNotFoundError:
                continue  # a writer's temporary file that went


def delete(path: str) -> None:
    """Delete one file; a missing one is fine. Delete a manifest before the files it lists."""
    if not is_local(path):
        _asked("delete", path, objects.delete)
        return
    with explained("delete", path), contextlib.suppress(FileNotFoundError):
        os.unlink(local(path))


def delete_folder(path: str) -> None:
    """Delete a local folder if it is empty; object stores have no folders."""
    if is_local(path):
        with contextlib.suppress(OSError):
            os.rmdir(local(path))


def sweep_temporary(folder: str, older_than_s: float = 3600.0) -> int:
    """Delete temporary files that killed writers left in a local folder; return how many."""
    if not is_local(folder) or not os.path.isdir(local(folder)):
        return 0
    swept = 0
    for entry in os.scandir(local(folder)):
        # gone meanwhile, because its writer is alive, or not ours to delete
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if TEMP_MARK in entry.name and time.time() - entry.stat().st_mtime > older_than_s:
                os.unlink(entry.path)
                swept += 1
    return swept


def download(path: str, target: str) -> None:
    """Write a remote file to the local path `target`, piece by piece. Raises StorageError."""
    _asked("read", path, lambda fs, inner: objects.download(fs, inner, target))


def upload(source: str, path: str) -> None:
    """Publish a local file of any size at a remote path, whole. Raises StorageError."""
    _asked("write", path, lambda fs, inner: objects.upload(fs, inner, source))
