"""Where the tensors of a checkpoint are: which bytes of which file hold which part of which tensor.

Each data file is a safetensors file. A slice is one box of one tensor, row after row, and has a
CRC-32C of its own, so that whoever needs a few slices reads and verifies just these.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from imagen import manifest, storage
from imagen.errors import DamagedError

Offset = tuple[int, ...]

GAP_BYTES = 2**20
"""Slices that are no further apart are read by one request, with what is between them."""
REQUEST_BYTES = 64 * 2**20
"""Most bytes of one request, unless one slice is longer."""
REQUESTS = 8
"""Requests at a time."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A box of a tensor, in bytes of a file."""

    file: str
    start: int
    size: int
    crc32c: str
    offset: Offset
    """First element of the box along each axis."""
    shape: Offset
    """Its size along each axis."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor, and the boxes that make it up."""

    dtype: torch.dtype
    shape: Offset
    slices: tuple[Slice, ...]


Layout = dict[str, Whole]
"""Every tensor of a checkpoint by name."""


def to_json(layout: Layout) -> bytes:
    """Return a layout as one line of JSON."""
    files = sorted({part.file for whole in layout.values() for part in whole.slices})
    number = {file: i for i, file in enumerate(files)}
    tensors = {
        name: {
            "dtype": str(whole.dtype).removeprefix("torch."),
            "shape": whole.shape,
            "slices": [
                [number[s.file], s.start, s.size, s.crc32c, s.offset, s.shape] for s in whole.slices
            ],
        }
        for name, whole in layout.items()
    }
    body = {"files": files, "tensors": tensors}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf8")


def from_json(data: bytes) -> Layout:
    """Return the layout that `to_json` was given."""
    body = json.loads(data)
    files = body["files"]
    layout = {}
    for name, entry in body["tensors"].items():
        slices = tuple(
            Slice(files[file], start, size, crc, tuple(offset), tuple(shape))
            for file, start, size, crc, offset, shape in entry["slices"]
        )
        dtype = getattr(torch, entry["dtype"])
        layout[name] = Whole(dtype, tuple(entry["shape"]), slices)
    return layout


def spans(data: bytes) -> dict[str, tuple[int, int]]:
    """Return (first byte, size) of each tensor in the bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    ends = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (8 + length + a, b - a) for name, (a, b) in ends.items()}


def of_whole_files(folder: str, files: Mapping[str, Mapping[str, Any]]) -> Layout:
    """Return the layout of a checkpoint that is older than layouts: whole tensors in its files.

    Reads each file once, to verify it. Raises DamagedError, StorageError.
    """
    import safetensors.torch

    layout = {}
    for file, entry in files.items():
        path = storage.join(folder, file)
        data = storage.get(path)
        manifest.check_file(path, data, entry, DamagedError)
        tensors = safetensors.torch.load(data)
        for name, (start, size) in spans(data).items():
            crc, shape = storage.crc32c(data[start : start + size]), tuple(tensors[name].shape)
            part = Slice(file, start, size, crc, (0,) * len(shape), shape)
            layout[name] = Whole(tensors[name].dtype, shape, (part,))
    return layout


def read(folder: str, slices: Iterable[Slice]) -> Iterator[tuple[Slice, bytearray]]:
    """Yield each of `slices` with its verified bytes. Raises DamagedError, StorageError."""
    requests = _requests(slices)
    with ThreadPoolExecutor(REQUESTS) as pool:
        for i in range(0, len(requests), REQUESTS):
            group = requests[i : i + REQUESTS]
            for wanted, data in zip(
                group, pool.map(lambda r: _fetch(folder, r), group), strict=True
            ):
                for part in wanted:
                    first = part.start - wanted[0].start
                    yield part, _checked(folder, part, data[first : first + part.size])


def _requests(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Return slices in order of their place, those in one list near each other."""
    requests: list[list[Slice]] = []
    for part in sorted(slices, key=lambda s: (s.file, s.start)):
        last = requests[-1] if requests else None
        if (
            last is not None
            and last[0].file == part.file
            and part.start - (last[-1].start + last[-1].size) <= GAP_BYTES
            and part.start + part.size - last[0].start <= REQUEST_BYTES
        ):
            last.append(part)
        else:
            requests.append([part])
    return requests


def _fetch(folder: str, wanted: list[Slice]) -> bytes:
    path, start = storage.join(folder, wanted[0].file), wanted[0].start
    size = wanted[-1].start + wanted[-1].size - start
    return storage.get_range(path, start, size)


def _checked(folder: str, part: Slice, data: bytes) -> bytearray:
    found = storage.crc32c(data)
    if found != part.crc32c:
        raise DamagedError(
            f"`{storage.join(folder, part.file)}` has checksum {found} in the {part.size} bytes "
            f"from {part.start}, its layout says {part.crc32c}",
            "the file was damaged or replaced after it was written",
        )
    return bytearray(data)
