"""CRC-32C: the checksum that manifests list, and that GCS keeps of each object."""

import functools
from collections.abc import Iterable

import google_crc32c

_PIECE_BYTES = 8 * 2**20


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
