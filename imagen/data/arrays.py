"""Arrays as plain `.npy` files: to bytes, and back as memory maps that were checked."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from imagen import manifest, staging, storage, store
from imagen.data.shard_cache import Remote, ShardCache
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
    path: str, entry: Mapping[str, Any], cache: ShardCache | None = None, *, big: bool = False
) -> np.ndarray:
    """Return the array of a `.npy` file that a manifest lists as `entry`, read-only.

    It is read into memory and its checksum compared. `big` ones are memory-mapped: local ones where
    they are, of which only the size is compared, remote ones in `cache` when there is one.
    Raises ShardError, StorageError.
    """
    if big and storage.is_local(path):
        return _map(_sized(path, entry))
    if big and cache is not None:
        return cache.use(remote(path, entry), _map)
    return np.load(io.BytesIO(manifest.check_file(path, storage.get(path), entry)))


def remote(path: str, entry: Mapping[str, Any]) -> Remote:
    """Return a file that a manifest lists as `entry`, as a cache knows it."""
    return Remote(path, entry["bytes"], entry["crc32c"])


def _sized(path: str, entry: Mapping[str, Any]) -> str:
    """Return the local path of a file. Raises ShardError when it has another size."""
    if storage.size(path) != entry["bytes"]:
        raise ShardError(
            f"`{path}` has {storage.size(path)} bytes, its manifest says {entry['bytes']}",
            "the file was damaged after it was written: delete its manifest and rerun",
        )
    return storage.local(path)


def _map(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
