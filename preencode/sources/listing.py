"""All files below a folder, local or remote, each with a text that changes when it does."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from imagen import manifest, storage
from imagen.errors import ConfigError, StorageError
from imagen.store import explained
from preencode.sources.rows import BadRowError, printable

LINKED_FOLDER, BROKEN_LINK, UNREADABLE = "linked folder", "broken link", "unreadable link"
"""Versions of what a walk does not follow."""
_MISSING = frozenset({errno.ENOENT, errno.ELOOP})
_UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
)


@dataclass(frozen=True, slots=True)
class File:
    """A file: its path below the folder, its size, and what changes when it is replaced."""

    name: str
    size: int
    version: str


def is_folder(path: str) -> bool:
    """Tell whether a folder is there."""
    if storage.is_local(path):
        return os.path.isdir(storage.local(path))
    fs, inner = _remote(path)
    with explained("look up", path):
        return fs.isdir(inner)


def files_below(folder: str) -> list[File]:
    """Return all files below a folder, sorted by name. Raises ConfigError, StorageError."""
    if not is_folder(folder):
        raise ConfigError(f"there is no folder `{folder}`", "give the folder of the images")
    walk = _local_files if storage.is_local(folder) else _remote_files
    return sorted(walk(storage.local(folder)), key=lambda file: file.name)


def _local_files(folder: str) -> Iterator[File]:
    for where, folders, names in os.walk(folder, onerror=_raise):
        for name in folders:
            if os.path.islink(path := os.path.join(where, name)):
                yield File(os.path.relpath(path, folder), 0, LINKED_FOLDER)
        for name in names:
            yield _local_file(os.path.join(where, name), folder)


def _local_file(path: str, folder: str) -> File:
    name = os.path.relpath(path, folder)
    try:
        stat = os.stat(path)
    except OSError as err:
        if err.errno not in _MISSING | _UNREADABLE:
            _raise(err)
        return File(name, 0, BROKEN_LINK if err.errno in _MISSING else UNREADABLE)
    return File(name, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")


def digest(files: Iterable[File]) -> str:
    """Return a text that changes when a file comes, goes or is replaced."""
    return manifest.fingerprint([[printable(file.name), file.version] for file in files])


def _raise(err: OSError) -> None:
    raise StorageError(f"cannot list `{err.filename}`: {err.strerror}") from err


@contextlib.contextmanager
def one_file(folder: str) -> Iterator[None]:
    """Turn a StorageError of one file of a local folder into a BadRowError.

    A disk that fails, or a folder that is gone or empty, is not the fault of one file.
    """
    try:
        yield
    except StorageError as err:
        cause = err.__cause__
        if not storage.is_local(folder) or not _is_filled(storage.local(folder)):
            raise
        gone = isinstance(cause, (KeyError, FileNotFoundError))  # KeyError: in an archive
        if gone or getattr(cause, "errno", None) in _MISSING:
            raise BadRowError("missing_file", "it is not there") from None
        if isinstance(cause, OSError) and cause.errno not in {None, *_UNREADABLE}:
            raise
        told = getattr(cause, "strerror", None) or type(cause).__name__
        raise BadRowError("unreadable_file", told) from None


def _is_filled(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _remote(path: str) -> tuple[Any, str]:
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    try:
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ImportError, ValueError) as err:
        raise StorageError(f"cannot open `{path}`: {err}") from err


def _remote_files(folder: str) -> Iterator[File]:
    fs, inner = _remote(folder)
    root = inner.rstrip("/") + "/"
    tags = ("generation", "etag", "ETag", "crc32c", "mtime", "LastModified", "created")
    try:
        found = fs.find(inner, detail=True)
    except Exception as err:  # stores have errors of their own
        raise StorageError(f"cannot list `{folder}`: {type(err).__name__}: {err}") from err
    for path, info in found.items():
        tag = next((info[t] for t in tags if info.get(t)), "")
        yield File(path.removeprefix(root), int(info["size"]), f"{info['size']}-{tag}")
