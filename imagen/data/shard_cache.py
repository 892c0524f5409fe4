"""Local copies of remote files, shared by the processes of a machine, within a limit of bytes.

What is needed next is known from the order, so nothing is guessed: a process pins what it needs now
and what it will need next. Pinned files stay; of the others, those go first that were used longest
ago. What is pinned as next goes only where a file that is needed now has no other room.

```
files/<crc32c>-<bytes>-<digest of the URL>    a whole copy that was checked, named last
files/<the same>.tmp-download                 a download: locked by the process that writes it
pins/<pid>-<id>.json                          what a process pins: locked as long as it lives; with
                                              its limit: the largest one of those holds for all
lock                                          held for a moment by who changes any of these
```

The kernel frees the locks of a process that is killed: what it left is known by that. The folder
must be on a local disk, network file systems do not keep such locks. A file that a process has open
stays readable when it is evicted, and takes its room until it is closed: training looks for those
before each microbatch. So a disk may hold more than the limit for a while: what the processes that
load have used of late, beside what is pinned.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from imagen import storage, store
from imagen.data.pins import Kept, Pins, claim, unlink_unlocked
from imagen.errors import ConfigError, ShardError
from imagen.retrying import PATIENT, Patience, patiently

T = TypeVar("T")
FOLDER = os.path.join(tempfile.gettempdir(), f"imagen-cache-{os.getuid()}")
"""Where the copies of a machine are; what was in place once serves the next job, too."""

_DOWNLOAD = f"{store.TEMP_MARK}download"
_NAME = re.compile(rf"[0-9a-f]+-([0-9]+)-[0-9a-f]{{16}}({re.escape(_DOWNLOAD)})?")
_SLOWEST = 10**6
"""Bytes a second: a download is left behind after the time that this would take, and more."""
_BRIEFLY_S = 5.0
"""How much more for a file that is not needed yet."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file in a store as a manifest knows it."""

    url: str
    size: int
    crc32c: str

    @property
    def name(self) -> str:
        """Name of its copy: other content has another name."""
        digest = hashlib.sha256(self.url.encode("utf8", "surrogateescape")).hexdigest()[:16]
        return f"{self.crc32c}-{self.size}-{digest}"


class NoRoomError(ConfigError):
    """More is needed at once than the cache may hold."""


class ShardCache:
    """A folder of local copies of remote files; a process may pin some of them."""

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._pins = Pins(os.path.join(folder, "pins"))

    @property
    def _files(self) -> str:
        return os.path.join(self.folder, "files")

    def path(self, remote: Remote) -> str:
        """Return where the local copy is when there is one."""
        return os.path.join(self._files, remote.name)

    def use(self, remote: Remote, opener: Callable[[str], T]) -> T:
        """Return what `opener` makes of the local copy, which is downloaded when it is not there.

        Raises NoRoomError, StorageError; ShardError when the remote file has changed.
        """
        while True:
            path = self.fetch(remote)
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                return opener(path)

    def fetch(self, remote: Remote, *, needed: bool = True) -> str:
        """Return the path of the local copy, which is downloaded once for all processes.

        One that is not `needed` yet takes only room that no process has pinned, and is insisted on
        briefly.
        Raises as `use`.
        """
        target = self.path(remote)
        while not _is_there(target, remote.size):
            with self._exclusive():
                busy = self._admit(remote, needed)
                lock = None if busy else claim(target + _DOWNLOAD)
            if lock is None:
                _wait_for(busy)
            else:
                _download(remote, lock, target, patient=needed)
                break
        return target

    def pin(self, needed: Iterable[Remote], ahead: Iterable[Remote] = ()) -> None:
        """Keep these files for this process, instead of those it pinned before.

        Raises NoRoomError when all processes of the machine need more now than there may be.
        """
        with self._exclusive():
            try:
                now, later = [r.name for r in needed], [r.name for r in ahead]
                self._pins.write(now, later, self.limit_bytes)
                kept = self._pins.read()
                self._check_needed(kept.now, kept)
            except BaseException:
                self._pins.clear()
                raise

    def unpin(self) -> None:
        """Let go of what this process has pinned."""
        self._pins.clear()

    def room_bytes(self) -> int:
        """Return how many bytes copies take, or could on this disk."""
        there = self.folder
        while not os.path.isdir(there):
            there = os.path.dirname(there) or "."
        return shutil.disk_usage(there).free + sum(map(_size_of, self._names()))

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Be the only process (and thread) that changes the cache."""
        with store.explained("change", self.folder):
            os.makedirs(self._files, exist_ok=True)
            handle = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    def _names(self) -> list[str]:
        """Return the names of copies and downloads, no others."""
        names = os.listdir(self._files) if os.path.isdir(self._files) else []
        return [name for name in names if _NAME.fullmatch(name)]

    def _admit(self, remote: Remote, needed: bool) -> str | None:
        """Make room for a download; return the path of another one to wait for before, or None."""
        self._sweep()
        target = self.path(remote)
        if os.path.exists(target) or os.path.exists(target + _DOWNLOAD):
            return target + _DOWNLOAD
        kept, names = self._pins.read(), self._names()
        excess = sum(map(_size_of, names)) + remote.size - self._limit(kept)
        copies = [n for n in names if store.TEMP_MARK not in n and n not in kept.now]
        if not needed:
            copies = [n for n in copies if n not in kept.ahead]
        if excess > sum(map(_size_of, copies)):
            return self._other(names, kept, remote, needed)
        for name in sorted(copies, key=lambda n: (n in kept.ahead, _used(self._files, n))):
            if excess <= 0:
                break
            os.unlink(os.path.join(self._files, name))
            excess -= _size_of(name)
        return None

    def _other(self, names: list[str], kept: Kept, remote: Remote, needed: bool) -> str:
        """Return a download that makes room once it is over. Raises NoRoomError."""
        flying = [n for n in names if n.endswith(_DOWNLOAD) and _base(n) not in kept.now]
        if needed and flying:
            return os.path.join(self._files, flying[0])
        self._check_needed(kept.now | {remote.name}, kept)
        raise NoRoomError(
            f"no room for {_gb(remote.size)} in the cache `{self.folder}`: other processes hold it",
            "raise cache_gb",
        )

    def _limit(self, kept: Kept) -> int:
        """Return the limit of the machine: jobs with other limits share its cache."""
        return max(self.limit_bytes, kept.limit_bytes)

    def _check_needed(self, names: set[str], kept: Kept) -> None:
        total, limit = sum(map(_size_of, names)), self._limit(kept)
        if total > limit:
            raise NoRoomError(
                f"the processes of this machine need {len(names)} remote files at once, "
                f"{_gb(total)}; the cache `{self.folder}` may hold {_gb(limit)}",
                "raise cache_gb, or lower window or lanes (another order of the samples); on more "
                "machines each holds a smaller part of the lanes",
            )

    def _sweep(self) -> None:
        """Delete the downloads of processes that are gone."""
        for name in self._names():
            if name.endswith(_DOWNLOAD):
                unlink_unlocked(os.path.join(self._files, name))


def _base(name: str) -> str:
    return name.removesuffix(_DOWNLOAD)


def _size_of(name: str) -> int:
    """Return the bytes that a copy has, and that a download will have; 0 for names of others."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0


def _used(folder: str, name: str) -> float:
    return os.stat(os.path.join(folder, name)).st_mtime


def _is_there(path: str, size: int) -> bool:
    """Tell whether a copy is there, and note that it is used."""
    try:
        if os.stat(path).st_size != size:  # the disk lost what it had said to be safe
            os.unlink(path)
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _wait_for(path: str | None) -> None:
    """Return when the process that writes a download is done, or gone."""
    assert path is not None, "there is something to wait for"
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)


def _download(remote: Remote, lock: int, target: str, patient: bool) -> None:
    """Download to the file that was claimed for it, check it and give it its name."""
    temp = target + _DOWNLOAD
    try:
        with store.explained("write", temp):
            os.posix_fallocate(lock, 0, max(remote.size, 1))  # a full disk is told now
        _get(remote, temp, patient)
        if not _is_whole(remote, temp):
            _get(remote, temp, patient)  # a connection may have broken it
        if not _is_whole(remote, temp):
            found = f"{os.stat(temp).st_size} bytes with checksum {storage.crc32c_file(temp)}"
            raise ShardError(
                f"`{remote.url}` has changed since it was indexed: it has {found}, not "
                f"{remote.size} with {remote.crc32c}",
                "run `python -m preencode CONFIG`: it does again what has changed",
            )
        with store.explained("write", target):
            os.fsync(lock)
            storage.publish_local(temp, target, if_absent=False)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
        raise
    finally:
        os.close(lock)


def _get(remote: Remote, temp: str, patient: bool) -> None:
    """Write a remote file to `temp`; insist on it for long where it is needed now."""
    waits_s = PATIENT.deadline_s if patient else _BRIEFLY_S
    patience = Patience(waits_s + remote.size / _SLOWEST)
    patiently(lambda: storage.download(remote.url, temp), remote.url, patience)


def _is_whole(remote: Remote, path: str) -> bool:
    return os.stat(path).st_size == remote.size and storage.crc32c_file(path) == remote.crc32c


def _gb(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"
