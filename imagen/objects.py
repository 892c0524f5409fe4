"""Objects in a store: what imagen/storage.py asks of fsspec's file systems.

Each function gets a file system and the path in it, tries once, and raises what the store raises.
What was uploaded is compared with what the store has, by size, and by checksum where it tells one.
"""

import base64
import contextlib
import contextvars
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from imagen.checksum import crc32c, crc32c_file
from imagen.retrying import patiently
from imagen.store import explained, name

_TAGS = ("generation", "etag", "ETag", "crc32c", "mtime", "LastModified", "created")
"""What stores call the thing that changes when an object is replaced."""
PIECE_BYTES = 16 * 2**20
"""A download comes in pieces of this size, each of them insisted on by itself."""
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as a listing shows it."""

    size: int
    version: str
    """As `storage.version` returns it."""


class DamagedTransferError(Exception):
    """What arrived is not what was sent: another try may do better."""


def version(info: Mapping[str, Any]) -> str:
    """Return a text that changes when an object is replaced."""
    tag = next((info[t] for t in _TAGS if info.get(t)), "")
    # memory:// lists a time as a date, and looks it up as a number
    return f"{info['size']}-{tag.timestamp() if isinstance(tag, datetime) else tag}"


def is_file(fs: Any, path: str) -> bool:
    """Tell whether there is an object; fsspec's own `isfile` says no when it cannot know."""
    try:
        return fs.info(path)["type"] == "file"
    except FileNotFoundError:
        return False


def put(fs: Any, path: str, data: bytes, if_absent: bool) -> bool:
    """Return False when `if_absent` and there is one, perhaps by our own lost request."""
    try:
        told = fs.pipe_file(path, data, **({"mode": "create"} if if_absent else {}))
    except FileExistsError:
        if not if_absent:
            raise
        return False
    # gcsfs returns what GCS says of the new object; others nothing
    info = told if isinstance(told, Mapping) and "size" in told else fs.info(path)
    _check(path, info, len(data), crc32c(data))
    return True


def replace(fs: Any, path: str, data: bytes, wanted: str) -> bool:
    """Write an object in place of the version `wanted`; False when there is another one."""
    try:
        if hasattr(fs, "replace"):  # GCS alone does it in one request
            fs.replace(path, data, int(wanted.rpartition("-")[2]))
            return True
        there = version(fs.info(path)) == wanted
    except (FileExistsError, FileNotFoundError):
        return False
    return there and put(fs, path, data, if_absent=False)


def upload(fs: Any, path: str, source: str) -> None:
    """Write a local file as an object, whole."""
    fs.put_file(source, path)
    info = fs.info(path)
    sum_ = crc32c_file(source) if "crc32c" in info else ""
    _check(path, info, os.stat(source).st_size, sum_)


def download(fs: Any, path: str, target: str) -> None:
    """Write an object to a local file, some pieces at a time, each insisted on by itself."""
    info, url = fs.info(path), fs.unstrip_protocol(path)
    size = int(info["size"])
    handle = os.open(target, os.O_RDWR | os.O_CREAT, 0o644)
    try:

        def fetch(start: int) -> None:
            end = min(start + PIECE_BYTES, size)
            os.pwrite(handle, patiently(lambda: _piece(fs, path, start, end), url), start)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            starts = range(0, size, PIECE_BYTES)
            contexts = [contextvars.copy_context() for _ in starts]  # the deadline is in them
            jobs = [pool.submit(c.run, fetch, s) for c, s in zip(contexts, starts, strict=True)]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        os.ftruncate(handle, size)
    finally:
        os.close(handle)
    _check(path, info, size, crc32c_file(target) if "crc32c" in info else "")


def _piece(fs: Any, path: str, start: int, end: int) -> bytes:
    with explained("read", fs.unstrip_protocol(path)):
        data = fs.cat_file(path, start=start, end=end)
    if len(data) != end - start:
        raise DamagedTransferError(f"{len(data)} bytes came from byte {start}, not {end - start}")
    return data


def _check(path: str, info: Mapping[str, Any], size: int, sum_: str) -> None:
    """Raise DamagedTransferError unless the store has what we have."""
    if int(info["size"]) != size:
        raise DamagedTransferError(f"`{path}` has {info['size']} bytes in the store, not {size}")
    if "crc32c" in info and (found := base64.b64decode(info["crc32c"]).hex()) != sum_:
        raise DamagedTransferError(f"`{path}` has checksum {found} in the store, not {sum_}")


def names(fs: Any, path: str) -> list[str]:
    """Return the names in a folder; [] when there is none."""
    try:
        return [name(entry) for entry in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return []


def scan(fs: Any, path: str) -> dict[str, Entry]:
    """Return the objects in a folder by name, from one listing; {} when there is none."""
    try:
        infos = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    files = (info for info in infos if info["type"] == "file")
    return {name(info["name"]): Entry(int(info["size"]), version(info)) for info in files}


def delete(fs: Any, path: str) -> None:
    """Delete an object; a missing one is fine."""
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)
