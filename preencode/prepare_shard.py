"""The work of `prepare` on one tar: its images at the size of each member, a pure function of both.

A tar is read once for all members, and one prepared tar is in memory at a time. What is already
there and fits is kept, so a second run, or a retry after a kill, does only what is missing, and a
retry writes the same bytes.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagen import manifest, storage
from imagen.data import index, resize, tars
from imagen.data.prepared import ShardInfo, relative_tar
from imagen.errors import ShardError

Listing = Mapping[str, int]
"""Sizes of the files of a folder (`storage.sizes`)."""
EXAMPLES = 20
"""Unreadable images that a shard's manifest names; all of them are counted."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member and where its prepared images are."""

    name: str
    folder: str
    target: resize.Target

    @property
    def data(self) -> str:
        """Folder of its tars."""
        return storage.join(self.folder, "data")

    @property
    def index(self) -> str:
        """Folder of their index."""
        return resize.index_dir(self.folder)

    def tar(self, shard: str) -> str:
        """Path of the prepared tar of a shard."""
        return storage.join(self.data, f"{shard}.tar")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all shards of a run have in common."""

    index_dir: str
    """Of the source."""
    heldout: float
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Todo:
    """One source tar and the members that lack its images."""

    shard: ShardInfo
    members: tuple[str, ...]

    def __str__(self) -> str:
        return self.shard.tar


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What was done for one source tar."""

    name: str
    images: int
    """Images that were brought to the size of a member, or left as they are."""
    seconds: float
    unreadable: list[dict[str, str]] = field(default_factory=list)
    """Some of them, as the manifests name them."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A source tar that was read, and is what the index says."""

    content: tars.Buffer
    rows: np.ndarray
    keys: list[str]
    captions: list[str]

    def image(self, row: np.void) -> bytes:
        start = int(row["image_offset"])
        return self.content[start : start + int(row["image_bytes"])]


def done(
    job: Job, member: Member, shard: ShardInfo, listings: tuple[Listing, Listing] | None = None
) -> dict[str, Any] | None:
    """Return the manifest of a member's complete shard of this very source, else None.

    `listings` of the member's index and data folders save looking at each file.
    """
    files, packed = listings or (None, None)
    body = _made(member, shard, files)
    if body is None or (body["version"], body["heldout_share"]) != (index.VERSION, job.heldout):
        return None
    return body if _tar_bytes(member, shard.name, packed) == body["tar_bytes"] else None


def _made(member: Member, shard: ShardInfo, files: Listing | None = None) -> dict[str, Any] | None:
    """Return the manifest of a shard whose images are of this source at this size, else None."""
    path = index.manifest_path(member.index, shard.name)
    body = manifest.read_if_complete(path, "index", files)
    return body if body is not None and body.get("prepared") == _identity(member, shard) else None


def _identity(member: Member, shard: ShardInfo) -> dict[str, Any]:
    return {
        "digest": shard.digest,
        "images_crc32c": shard.images_crc32c,
        **member.target.settings(),
    }


def _tar_bytes(member: Member, name: str, listing: Listing | None) -> int | None:
    path = member.tar(name)
    if listing is not None:
        return listing.get(storage.name(path))
    return storage.size(path) if storage.exists(path) else None


def index_files(name: str) -> tuple[str, ...]:
    """Return the names of the files that an index has of a shard, besides its manifest."""
    return f"{name}.index.npy", f"{name}.keys.npy", f"{name}.quarantine.jsonl"


def process(job: Job, todo: Todo) -> ShardReport:
    """Do what a shard lacks. Raises ShardError, StorageError; writes only complete shards."""
    start, shard = time.perf_counter(), todo.shard
    source, images, unreadable = None, 0, []
    for member in job.members:
        if member.name not in todo.members or done(job, member, shard) is not None:
            continue
        there = _there(member, shard)
        if there is None:
            source = source or _read(job, shard)
            unreadable += _make(job, member, shard, source).unreadable
            images += len(source.keys)
        else:
            _index(job, member, shard, *there)
    seconds = time.perf_counter() - start
    return ShardReport(name=shard.name, images=images, seconds=seconds, unreadable=unreadable)


def _there(member: Member, shard: ShardInfo) -> tuple[tars.Buffer, dict[str, Any]] | None:
    """Return a prepared tar that only lacks an index with today's split and version."""
    body = _made(member, shard)
    if body is None or _tar_bytes(member, shard.name, None) != body["tar_bytes"]:
        return None
    content = tars.open_tar(member.tar(shard.name))
    if storage.crc32c(bytes(content)) != body["tar_crc32c"]:
        return None
    return content, {key: body[key] for key in ("kept", "unreadable", "bytes")}


def _read(job: Job, shard: ShardInfo) -> _Source:
    """Read a source tar. Raises ShardError when it has changed since it was indexed."""
    rows, keys, _ = index.load(job.index_dir, shard.name)
    content = tars.open_tar(shard.tar)
    try:
        captions = index.captions(content, rows)
    except ValueError:  # no UTF-8, no JSON: something else stands there now
        captions = [""] * len(rows)
    source = _Source(content, rows, [_text(key) for key in keys], captions)
    digests = index.digest_rows(keys, captions), storage.crc32c_of(map(source.image, rows))
    if digests != (shard.digest, shard.images_crc32c):
        raise ShardError(
            f"tar `{shard.tar}` has changed since it was indexed",
            f"delete `{index.manifest_path(job.index_dir, shard.name)}`, run "
            "`python -m preencode CONFIG`, then prepare again",
        )
    return source


def _text(key: bytes) -> str:
    return bytes(key).decode("utf8", "surrogateescape")


@dataclass(slots=True)
class _Tally:
    """What became of the images of one shard for one member."""

    kept: Counter[str] = field(default_factory=Counter)
    size: Counter[str] = field(default_factory=Counter)
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def add(self, key: str, image: bytes, picture: resize.Picture) -> None:
        self.size.update(source=len(image), prepared=len(picture.data))
        if picture.kept is not None:
            self.kept[picture.kept] += 1
        if picture.kept == "unreadable" and len(self.unreadable) < EXAMPLES:
            told = key.encode("utf8", "backslashreplace").decode("utf8")
            self.unreadable.append({"key": told, "reason": picture.detail})

    def facts(self) -> dict[str, Any]:
        return {
            "kept": dict(sorted(self.kept.items())),
            "unreadable": self.unreadable,
            "bytes": dict(self.size),
        }


def _make(job: Job, member: Member, shard: ShardInfo, source: _Source) -> _Tally:
    """Make and publish one member's shard; return what became of its images."""
    tally = _Tally()

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for row, key, caption in zip(source.rows, source.keys, source.captions, strict=True):
            image = source.image(row)
            picture = resize.resize(image, member.target)
            tally.add(key, image, picture)
            yield key, {picture.extension: picture.data, "txt": caption.encode("utf8")}

    packed = tars.write_tar(samples())
    _index(job, member, shard, packed, tally.facts(), new=True)
    return tally


def _index(
    job: Job,
    member: Member,
    shard: ShardInfo,
    packed: tars.Buffer,
    facts: Mapping[str, Any],
    *,
    new: bool = False,
) -> None:
    """Index a prepared tar and publish both: the tar, if it is new, then its index."""
    path = member.tar(shard.name)
    found = index.index_tar(packed, path, job.heldout)
    if found.digest != shard.digest:
        raise ShardError(
            f"tar `{shard.tar}` cannot be prepared for {member.name}: its keys and captions would "
            "not be the same in a new tar",
            "set data.prepare=false, and report this tar",
        )
    data = bytes(packed)
    storage.delete(index.manifest_path(member.index, shard.name))  # none while files are replaced
    if new:
        storage.put(path, data)
    crc32c = storage.crc32c(data)
    made_from = {
        "tar": relative_tar(member.index, path),
        "tar_version": f"crc32c-{crc32c}",
        "tar_crc32c": crc32c,
        "heldout_share": job.heldout,
        "prepared": _identity(member, shard),
        **facts,
    }
    index.publish(member.index, shard.name, found, made_from)
