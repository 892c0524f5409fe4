"""What all sources have in common: rows in an order that their listing and the seed decide."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imagen.data.order import permutation
from imagen.data.samples import LARGEST_CAPTION_BYTES
from imagen.data.tars import BLOCK

_ORDER = 0x1A7
TAR_END_BYTES = 10240
"""Zeroes at the end of a tar, at most."""


class BadRowError(Exception):
    """Carries (reason, detail) of a row that cannot be used."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A usable row: its key and the members of the tar, by extension."""

    key: str
    parts: Mapping[str, bytes]

    @property
    def tar_bytes(self) -> int:
        """Bytes that the sample takes in a tar."""
        return sum(BLOCK - (-len(data) // BLOCK) * BLOCK for data in self.parts.values())


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that is left out."""

    row: int
    """Its number in the source, from 0."""
    where: str
    """File, URL or row that a person can look up."""
    reason: str
    detail: str


Row = Sample | Bad


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of one shard: [start, stop) of the order."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Source(Protocol):
    """A listed source. Its slices and the order of its rows are pure functions of the listing."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        ...

    @property
    def listing(self) -> str:
        """A text that changes when the source does; empty for generated ones."""
        ...

    @property
    def rows(self) -> int | None:
        """Number of rows; None: only the end tells."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """Bytes of its images, where the listing tells."""
        ...

    @property
    def ignored(self) -> Mapping[str, int]:
        """What lies in the source, but is no row, by kind."""
        ...

    def slices(self) -> Iterator[Slice]:
        """Yield the rows of each shard in order; without end where `rows` is None."""
        ...

    def read(self, part: Slice) -> Iterator[Row]:
        """Yield the rows of a slice in order; fewer when the source ends."""
        ...


def seeded_order(rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the order in which rows are dealt to shards."""
    return permutation(rows, seed, _ORDER)


def key_of(row: int) -> str:
    """Return the key of a row: its number, zero-padded, so that it is unique and has no dot."""
    return f"{row:09d}"


def printable(text: str) -> str:
    """Return a text as UTF-8 can hold it: names of files may be any bytes."""
    return text.encode("utf8", "backslashreplace").decode("utf8")


def equal_slices(rows: int | None, length: int) -> Iterator[Slice]:
    """Cut rows into slices of one length; without end when `rows` is None."""
    for start in count(0, length) if rows is None else range(0, rows, length):
        yield Slice(start, start + length if rows is None else min(start + length, rows))


def caption_text(raw: bytes | None) -> str:
    """Return a caption without white space around it, as an index takes it. Raises BadRowError."""
    if raw is None:
        raise BadRowError("no_caption", "there is none")
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as err:
        raise BadRowError("non_utf8", str(err)) from None
    if not text:
        raise BadRowError("no_caption", "it is empty")
    if (size := len(text.encode("utf8"))) > LARGEST_CAPTION_BYTES:
        raise BadRowError("caption_size", f"{size:,} bytes")
    return text
