"""Publishing files that are too large for memory: written in place, then given their name."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from imagen import storage
from imagen.store import TEMP_MARK, explained, is_local, join, local, name

STAGING = os.path.join(tempfile.gettempdir(), f"imagen-staging-{os.getuid()}")
"""Where files wait that are too large for memory and on their way to a store."""


@contextlib.contextmanager
def staged(path: str, size: int) -> Iterator[str]:
    """Yield a local temporary file of `size` bytes; publish it at `path` when the block ends well.

    For files that need not fit into memory. Their room is taken first: a full disk is an error
    before the block runs, not a half-written file (or a SIGBUS in a memory map) in it.
    """
    folder = (os.path.dirname(local(path)) or ".") if is_local(path) else STAGING
    temp = join(folder, f"{name(path)}{TEMP_MARK}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with explained("write", path if is_local(path) else temp):
            _reserve(temp, size)
        yield temp
        _publish_file(temp, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)


def _reserve(path: str, size: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _publish_file(temp: str, path: str) -> None:
    """Publish a local file, whole: by rename, or by an upload that is then compared."""
    if not is_local(path):
        storage.upload(temp, path)
        return
    with explained("write", path):
        with open(temp, "rb") as file:
            os.fsync(file.fileno())
        storage.publish_local(temp, local(path), if_absent=False)
