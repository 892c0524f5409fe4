"""From a source to tar shards: each slice of its rows is packed, published, then said to be done.

A slice has a manifest of its own (`00007.json`, kind "source-shard"), so that a stopped import does
again what it had not finished and nothing else. Its first tar is `00007.tar`; where the bytes of
its images are known only once they are here, more may follow: `00007_001.tar` and on.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from imagen import manifest, storage
from imagen.data import tars
from preencode.sources.rows import TAR_END_BYTES, Bad, Row, Sample, Slice, Source, printable
from runtime.progress import Bar

KIND = "source-shard"
_TAR_NAME = re.compile(r"\d{5,}(_\d{3,})?\.tar")
_MANIFEST_NAME = re.compile(r"\d{5,}\.json")


@dataclass(slots=True)
class Total:
    """What the finished shards hold."""

    rows: int = 0
    samples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """A JSON line for each row that was left out."""

    def add(self, body: dict[str, Any]) -> None:
        """Count one shard's manifest."""
        self.rows += body["rows"]
        self.samples += body["samples"]
        self.left_out.update(body["left_out"])
        self.files |= body["files"]
        self.failures += body["failures"]


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
