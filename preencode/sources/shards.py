"""From a source to tar shards: each slice of its rows is packed, published, then said to be done.

A slice has a manifest of its own (`00007.json`, kind "source-shard"), so that a stopped import does
again what it had not finished and nothing else. Its first tar is `00007.tar`; where the bytes of
its images are known only once they are here, more may follow: `00007_001.tar` and on.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from imagen import manifest, staging, storage
from imagen.data import tars
from imagen.errors import ConfigError, ShardError
from preencode.sources.rows import TAR_END_BYTES, Bad, Row, Sample, Slice, Source, printable
from runtime.progress import Bar

KIND = "source-shard"
BEGUN = "begun.json"
"""Says that the tars here are an import's: there from before the first tar until the manifest."""
_OF_ALL = "manifest.json"
_TAR_NAME = re.compile(r"\d{5,}(_\d{3,})?\.tar")
_MANIFEST_NAME = re.compile(r"\d{5,}\.json")


@dataclass(slots=True)
class Total:
    """What the finished shards hold."""

    rows: int = 0
    samples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    """Shards that left rows out."""
    failure_bytes: int = 0
    """Of a JSON line for each row that was left out."""

    def add(self, number: int, body: dict[str, Any]) -> None:
        """Count one shard's manifest."""
        self.rows += body["rows"]
        self.samples += body["samples"]
        self.left_out.update(body["left_out"])
        self.files |= body["files"]
        if body["failures"]:
            self.failed.append(number)
            self.failure_bytes += sum(len(line) for line in _lines(body))


Files = Mapping[str, int]
"""Name -> bytes of what is in the folder."""


def finished(
    folder: str, files: Files, number: int, identity: str, part: Slice
) -> dict[str, Any] | None:
    """Return the manifest of a complete shard of these very rows, else None."""
    body = manifest.read_if_complete(_path(folder, number), KIND, files)
    wanted = {"identity": identity, "start": part.start, "stop": part.stop}
    return body if body is not None and {k: body.get(k) for k in wanted} == wanted else None


def _path(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:05d}.json")


def _lines(body: dict[str, Any]) -> Iterator[bytes]:
    return ((json.dumps(failure) + "\n").encode("ascii") for failure in body["failures"])


def publish_failures(folder: str, path: str, total: Total) -> None:
    """Write the rows that were left out as JSON lines, one shard's in memory at a time."""
    if not total.failed:
        storage.delete(path)
        return
    with staging.staged(path, total.failure_bytes) as temp, open(temp, "r+b") as file:
        for number in total.failed:
            file.writelines(_lines(manifest.read(_path(folder, number), KIND)))


def is_import(folder: str, files: Iterable[str]) -> bool:
    """Tell whether an import of ours, finished or not, lies in a folder of these files.

    Of many manifests of shards a few are read: they are of one writer.
    """
    names = [name for name in sorted(files) if _MANIFEST_NAME.fullmatch(name)]
    known = {_OF_ALL: "source", BEGUN: "source-begun"}
    asked = {n: kind for n, kind in known.items() if n in files} | dict.fromkeys(names[:4], KIND)
    return any(_is_of(storage.join(folder, name), kind) for name, kind in asked.items())


def _is_of(path: str, kind: str) -> bool:
    try:
        manifest.read(path, kind)
    except ShardError:
        return False
    return True


def begin(folder: str) -> None:
    """Take a folder for an import. Raises ConfigError when numbered tars of others are there."""
    files = storage.sizes(folder)
    if not is_import(folder, files):
        patterns = (_TAR_NAME, _MANIFEST_NAME, re.compile(re.escape(_OF_ALL)))
        if taken := [n for n in sorted(files) if any(p.fullmatch(n) for p in patterns)]:
            raise ConfigError(
                f"`{folder}` holds {', '.join(taken[:3])}{', …' if taken[3:] else ''}, which no "
                "import wrote: an import would replace them",
                f"use the tars where they are with data.tars={folder}, or import with another "
                "`out`; if nobody needs them, delete them",
            )
    if BEGUN not in files:
        manifest.write(storage.join(folder, BEGUN), "source-begun", {})


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the shards of one import."""

    folder: str
    identity: str
    """Of the settings and the listing: shards of another one are no part of this import."""
    source: Source
    shard_bytes: int

    def write(self, number: int, part: Slice, bar: Bar) -> dict[str, Any]:
        """Read the rows of a slice and publish its tars, then its manifest; return that."""
        bad: list[Bad] = []
        read = Counter[str]()
        files: dict[str, dict[str, Any]] = {}
        for i, packed in enumerate(
            _pack(_good(self.source.read(part), bad, read, bar), self.shard_bytes)
        ):
            name = f"{number:05d}_{i:03d}.tar" if i else f"{number:05d}.tar"
            files |= manifest.put_files(self.folder, {name: packed})
        body = {
            "identity": self.identity,
            "start": part.start,
            "stop": part.stop,
            "rows": read["rows"],
            "samples": read["rows"] - len(bad),
            "left_out": dict(sorted(Counter(b.reason for b in bad).items())),
            "failures": [_failure(b) for b in bad],
            "files": files,
        }
        manifest.write(_path(self.folder, number), KIND, body)
        return body

    def discard_others(self) -> Files:
        """Delete what other imports left, and tars of no finished shard; return what is there."""
        files, kept = storage.sizes(self.folder), set()
        for name in files:
            if not _MANIFEST_NAME.fullmatch(name):
                continue
            path = storage.join(self.folder, name)
            body = manifest.read_if_complete(path, KIND, files)
            if body is not None and body.get("identity") == self.identity:
                kept |= {name, *body["files"]}
        for name in sorted(files, key=lambda name: name.endswith(".tar")):  # manifests first
            ours = _MANIFEST_NAME.fullmatch(name) or _TAR_NAME.fullmatch(name)
            if ours and name not in kept:
                storage.delete(storage.join(self.folder, name))
        return {name: size for name, size in files.items() if name in kept}


def _good(rows: Iterator[Row], bad: list[Bad], read: Counter[str], bar: Bar) -> Iterator[Sample]:
    """Yield the usable rows, put the others into `bad`, count all."""
    for row in rows:
        read["rows"] += 1
        bar.advance()
        if isinstance(row, Sample):
            yield row
        else:
            bad.append(row)


def _failure(bad: Bad) -> dict[str, Any]:
    return {k: printable(v) if isinstance(v, str) else v for k, v in asdict(bad).items()}


def _pack(samples: Iterator[Sample], shard_bytes: int) -> Iterator[bytes]:
    """Yield tars of at most `shard_bytes`, with one sample at least; one is held at a time."""
    for first in samples:
        fill = _Fill(first, samples, shard_bytes)
        yield tars.write_tar(fill.members())
        while fill.left_over is not None:
            fill = _Fill(fill.left_over, samples, shard_bytes)
            yield tars.write_tar(fill.members())


@dataclass(slots=True)
class _Fill:
    """The samples of one tar, and the one that did not fit any more."""

    first: Sample
    following: Iterator[Sample]
    shard_bytes: int
    left_over: Sample | None = None

    def members(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield samples until the tar is full."""
        size = TAR_END_BYTES
        for sample in itertools.chain([self.first], self.following):
            size += sample.tar_bytes
            if size > self.shard_bytes and sample is not self.first:
                self.left_over = sample
                return
            yield sample.key, dict(sample.parts)
