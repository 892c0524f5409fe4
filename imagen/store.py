"""Where a path leads: a local disk, or a store through fsspec; and errors that say what failed."""

import contextlib
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from imagen.errors import ImagenError, StorageError
from imagen.redaction import redacted

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
    if path.startswith(("gs://", "gcs://")):
        from imagen import gcs

        return gcs.filesystem(path)
    import fsspec

    try:
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ImportError, ValueError) as err:
        raise StorageError(f"cannot open `{redacted(path)}`: {redacted(str(err))}") from None


@contextlib.contextmanager
def explained(action: str, path: str) -> Iterator[None]:
    """Turn what a disk or a store raises in the block into a StorageError: what, and where."""
    shown = redacted(path)
    try:
        yield
    except ImagenError:
        raise
    except FileNotFoundError as err:
        raise StorageError(f"cannot {action} `{shown}`: it does not exist") from err
    except PermissionError as err:
        hint = "check the permissions of the folder or the credentials of the bucket"
        told = f" ({redacted(str(err))})" if not is_local(path) and err.errno is None else ""
        raise StorageError(f"cannot {action} `{shown}`: permission denied{told}", hint) from err
    except OSError as err:
        told = err.strerror or redacted(str(err)) or type(err).__name__
        raise StorageError(f"cannot {action} `{shown}`: {told}") from err
    except Exception as err:
        if is_local(path):
            raise
        # stores have errors of their own: gcsfs.retry.HttpError, google.auth.exceptions, …
        hint = "check the address, the network and the credentials of the bucket"
        message = f"cannot {action} `{shown}`: {type(err).__name__}: {redacted(str(err))}"
        raise StorageError(message, hint) from err
