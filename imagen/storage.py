"""The storage seam: every byte the system reads or writes at a path or URL passes here.

Paths are local or any fsspec URL (`gs://`, `s3://`, `memory://`). Files are published whole: on a
local disk through a temporary file, fsync and rename; on an object store by uploading finished
bytes. Nothing is ever published through an open file handle, because an exception inside
`with fs.open(path, "wb")` makes gcsfs commit the truncated object.
"""

import contextlib
import functools
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import google_crc32c

from imagen.errors import StorageError
from imagen.store import TEMP_MARK, explained, filesystem, is_local, local, name
from imagen.store import join as join  # a part of this seam

_PIECE_BYTES = 8 * 2**20
_TAGS = ("generation", "etag", "ETag", "crc32c", "mtime", "LastModified", "created")
"""What stores call the thing that changes when an object is replaced."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as a listing shows it."""

    size: int
    version: str
    """As `version` returns it."""


def crc32c(data: bytes) -> str:
    """Return the CRC-32C of `data` as 8 hex digits (the checksum GCS keeps of each object)."""
    return crc32c_of([data])


def crc32c_of(parts: Iterable[bytes]) -> str:
    """Return the CRC-32C of `parts` laid end to end."""
    return f"{functools.reduce(google_crc32c.extend, parts, 0):08x}"


def crc32c_file(path: str) -> str:
    """Return the CRC-32C of a local file of any size."""
    with open(path, "rb") as file:
        return crc32c_of(iter(lambda: file.read(_PIECE_BYTES), b""))


def get(path: str) -> bytes:
    """Return the bytes of a file. Raises StorageError."""
    with explained("read", path):
        if is_local(path):
            with open(local(path), "rb") as file:
                return file.read()
        fs, inner = filesystem(path)
        return fs.cat_file(inner)


def get_range(path: str, start: int, size: int) -> bytes:
    """Return `size` bytes from byte `start`. Raises StorageError, also when the file is shorter."""
    with explained("read", path):
        if is_local(path):
            with open(local(path), "rb") as file:
                data = os.pread(file.fileno(), size, start)
        else:
            fs, inner = filesystem(path)
            data = fs.cat_file(inner, start=start, end=start + size)
    if len(data) != size:
        raise StorageError(f"`{path}` ends at byte {start + len(data)}, not at {start + size}")
    return data


def put(path: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Publish `data` at `path`, whole or not at all, and durably.

    With `if_absent` an existing file stays as it is. True means that the file now holds exactly
    `data`, whoever wrote it: a store whose answer was lost cannot tell our own upload from another
    one with the same bytes. So writers that race put something of their own into `data`. False
    means that the file holds something else.
    """
    with explained("write", path):
        put_whole = _put_local if is_local(path) else _put_object
        if put_whole(local(path), data, if_absent):
            return True
    return get(path) == data


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
        os.replace(temp, path)
    _sync_folder(os.path.dirname(path) or ".")
    return True


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_object(path: str, data: bytes, if_absent: bool) -> bool:
    """Return False when `if_absent` and the file is there, perhaps by our own lost request."""
    fs, inner = filesystem(path)
    if not if_absent:
        fs.pipe_file(inner, data)
        return True
    try:
        fs.pipe_file(inner, data, mode="create")
    except FileExistsError:
        return False
    return True


def exists(path: str) -> bool:
    """Tell whether a file is there, past every listing cache."""
    with explained("look up", path):
        if is_local(path):
            return os.path.isfile(local(path))
        fs, inner = filesystem(path)
        return fs.isfile(inner)


def size(path: str) -> int:
    """Return the size of a file in bytes. Raises StorageError when it does not exist."""
    with explained("look up", path):
        if is_local(path):
            return os.stat(local(path)).st_size
        fs, inner = filesystem(path)
        return int(fs.info(inner)["size"])


def version(path: str) -> str:
    """Return a text that changes when the file is replaced, found without reading it.

    Size and time of change on a local disk, size and the store's own tag elsewhere.
    """
    with explained("look up", path):
        if is_local(path):
            stat = os.stat(local(path))
            return f"{stat.st_size}-{stat.st_mtime_ns}"
        fs, inner = filesystem(path)
        return _version(fs.info(inner))


def _version(info: Mapping[str, Any]) -> str:
    tag = next((info[t] for t in _TAGS if info.get(t)), "")
    # memory:// lists a time as a date, and looks it up as a number
    return f"{info['size']}-{tag.timestamp() if isinstance(tag, datetime) else tag}"


def listdir(path: str) -> list[str]:
    """Return the sorted names in a folder, temporary files left out; [] when there is none."""
    with explained("list", path):
        if is_local(path):
            names = os.listdir(local(path)) if os.path.isdir(local(path)) else []
        else:
            fs, inner = filesystem(path)
            try:
                names = [name(entry) for entry in fs.ls(inner, detail=False)]
            except FileNotFoundError:
                names = []
    return sorted(n for n in names if n and TEMP_MARK not in n)


def scan(path: str) -> dict[str, Entry]:
    """Return the files of a folder by name, sorted, from one listing; {} when there is none.

    A store is asked once for a page of names, not once for each file. Temporary files are left out.
    """
    with explained("list", path):
        found = _scan_local(local(path)) if is_local(path) else _scan_remote(path)
    return {n: found[n] for n in sorted(found) if n and TEMP_MARK not in n}


def sizes(path: str) -> dict[str, int]:
    """Return the sizes of the files of a folder by name: `scan` without versions."""
    with explained("list", path):
        if not is_local(path):
            return {n: entry.size for n, entry in _scan_remote(path).items() if TEMP_MARK not in n}
        return {n: stat.st_size for n, stat in _stats(local(path)) if TEMP_MARK not in n}


def _scan_local(path: str) -> dict[str, Entry]:
    stats = _stats(path)
    return {n: Entry(s.st_size, f"{s.st_size}-{s.st_mtime_ns}") for n, s in stats}


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


def _scan_remote(path: str) -> dict[str, Entry]:
    fs, inner = filesystem(path)
    try:
        infos = fs.ls(inner, detail=True)
    except FileNotFoundError:
        return {}
    files = (info for info in infos if info["type"] == "file")
    return {name(info["name"]): Entry(int(info["size"]), _version(info)) for info in files}


def delete(path: str) -> None:
    """Delete one file; a missing one is fine. Delete a manifest before the files it lists."""
    with explained("delete", path):
        if is_local(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(local(path))
            return
        fs, inner = filesystem(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(inner)


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
    with explained("read", path):
        fs, inner = filesystem(path)
        fs.get_file(inner, target)
