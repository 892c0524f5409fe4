"""Where a path leads: a local disk, or a store through fsspec; and errors that say what failed."""

import contextlib
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from imagen.errors import ImagenError, StorageError

TEMP_MARK = ".tmp-"
"""Part of the name of every temporary file; a leftover of a killed writer is safe to delete."""


def is_local(path: str) -> bool:
    """Tell whether `path` is on a local disk (no `scheme://`, or `file://`)."""
    return "://" not in path or path.startswith("file://")


def local(path: str) -> str:
    """Return a local path without its `file://`."""
    return path.removeprefix("file://")


def join(path: str, *parts: str) -> str:
    """Join path segments with `/`, for URLs and local paths alike."""
    return posixpath.join(path, *parts)


def name(path: str) -> str:
    """Return the last segment of a path."""
    return path.rstrip("/").rpartition("/")[2]


def filesystem(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it. Raises StorageError."""
    # gcsfs asks for a bucket's layout over gRPC first, which hangs on HTTP emulators
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    try:
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ImportError, ValueError) as err:
        raise StorageError(f"cannot open `{path}`: {err}") from err


@contextlib.contextmanager
def explained(action: str, path: str) -> Iterator[None]:
    """Turn what a disk or a store raises in the block into a StorageError: what, and where."""
    try:
        yield
    except FileNotFoundError as err:
        raise StorageError(f"cannot {action} `{path}`: it does not exist") from err
    except PermissionError as err:
        hint = "check the permissions of the folder or the credentials of the bucket"
        raise StorageError(f"cannot {action} `{path}`: permission denied", hint) from err
    except OSError as err:
        raise StorageError(f"cannot {action} `{path}`: {err.strerror or err}") from err
    except ImagenError:
        raise
    except Exception as err:
        if is_local(path):
            raise
        # stores have errors of their own: gcsfs.retry.HttpError, google.auth.exceptions, …
        hint = "check the address, the network and the credentials of the bucket"
        message = f"cannot {action} `{path}`: {type(err).__name__}: {err}"
        raise StorageError(message, hint) from err
