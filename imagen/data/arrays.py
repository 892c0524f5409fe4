"""Arrays as plain `.npy` files: to bytes, and back as memory maps that were checked."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from imagen import manifest, staging, storage, store
from imagen.errors import ShardError


def to_npy(array: np.ndarray) -> bytes:
    """Return `array` as the bytes of a `.npy` file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def write_npy(
    path: str, shape: tuple[int, ...], dtype: npt.DTypeLike, fill: Callable[[np.ndarray], None]
) -> dict[str, Any]:
    """Publish a `.npy` file that need not fit into memory; return its entry for a manifest.

    `fill` gets the array, memory-mapped and writable, its room on the disk already taken; when it
    raises, nothing is published. Raises StorageError.
    """
    header = io.BytesIO()
    described = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        header, {"descr": described, "fortran_order": False, "shape": shape}
    )
    start = header.tell()
    size = start + math.prod(shape) * np.dtype(dtype).itemsize
    with staging.staged(path, size) as temp:
        with open(temp, "r+b") as file:
            file.write(header.getvalue())
        array = np.memmap(temp, dtype, "r+", offset=start, shape=shape)
        fill(array)
        with store.explained("write", path):
            array.flush()
        return {"bytes": size, "crc32c": storage.crc32c_file(temp)}


def open_npy(
    path: str, entry: Mapping[str, Any], cache: str | None = None, *, big: bool = False
) -> np.ndarray:
    """Return the array of a `.npy` file that a manifest lists as `entry`, read-only.

    Local files are memory-mapped, remote ones through a copy in the local folder `cache`, or read
    into memory when there is none. The checksum is compared, of `big` local files only the size.
    Raises ShardError, StorageError.
    """
    if not storage.is_local(path) and cache is None:
        return np.load(io.BytesIO(manifest.check_file(path, storage.get(path), entry)))
    place = storage.localize(path, cache or "", entry["crc32c"])
    if not big:
        manifest.check_file(path, storage.get(place), entry)
    elif storage.size(place) != entry["bytes"]:
        raise ShardError(
            f"`{path}` has {storage.size(place)} bytes, its manifest says {entry['bytes']}",
            "the file was damaged after it was written: delete its manifest and rerun",
        )
    return np.load(place, mmap_mode="r", allow_pickle=False).view(np.ndarray)
