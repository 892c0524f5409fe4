"""Append-only logs of events: one JSON object a line."""

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

from imagen import storage
from imagen.errors import StorageError
from imagen.retrying import PATIENT, Patience, patiently

REMOTE_EVERY_S = 10.0
"""An object store cannot append: a remote log is published whole, at most this often."""
HASTY = Patience(deadline_s=5.0)
"""How long a line that is written insists: it is kept, and comes with the next ones."""
CLOSING_S = 30.0
"""How long closing a log waits for another thread that publishes it."""


class JsonLog:
    """A JSONL file that grows by one line an event; what a killed writer left is kept."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = None
        self._lines: list[bytes] = []
        self._publishing = threading.Lock()
        self._published = time.monotonic()
        if storage.is_local(path):
            self._open_local(storage.local(path))
        elif before := storage.get_if_there(path):
            self._lines.append(before if before.endswith(b"\n") else before + b"\n")

    def _open_local(self, path: str) -> None:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._local = open(path, "ab+")  # noqa: SIM115 - closed by close()
        if self._local.tell():
            self._local.seek(-1, os.SEEK_END)
            if self._local.read(1) != b"\n":
                self._local.write(b"\n")  # close the line that a killed writer left torn

    def write(self, **fields: Any) -> None:
        """Append one event: `{"time": seconds since 1970, **fields}`; NaN and infinity as null."""
        event = {"time": round(time.time(), 3), **{k: _finite(v) for k, v in fields.items()}}
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        if self._local is not None:
            self._local.write(line)
            self._local.flush()
            return
        self._lines.append(line)
        due = time.monotonic() - self._published > REMOTE_EVERY_S
        if due and self._publishing.acquire(blocking=False):  # else another thread does it now
            with contextlib.ExitStack() as stack:
                stack.callback(self._publishing.release)
                stack.enter_context(contextlib.suppress(StorageError))  # the lines are kept
                patiently(self._publish, self.path, HASTY)

    def flush(self, patience: Patience = PATIENT) -> None:
        """Publish everything that was written, now; any thread. Raises StorageError."""
        with self._publishing:
            if self._local is None:
                patiently(self._publish, self.path, patience)
            elif not self._local.closed:
                os.fsync(self._local.fileno())

    def _publish(self) -> None:
        count = len(self._lines)  # more may come meanwhile
        data = b"".join(self._lines[:count])
        self._lines[:count] = [data]
        self._published = time.monotonic()
        if data:
            storage.put(self.path, data)

    def close(self) -> None:
        """Publish what is buffered and close the file."""
        alone = self._publishing.acquire(timeout=CLOSING_S)
        try:
            if self._local is not None:
                self._local.close()
            else:
                patiently(self._publish, self.path, Patience(deadline_s=CLOSING_S))
        finally:
            if alone:
                self._publishing.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(value: Any) -> Any:
    """Return None for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: str) -> list[dict[str, Any]]:
    """Return the events of a log, [] when there is none; torn lines of killed writers left out."""
    return list(parse(storage.get_if_there(path) or b""))


class Follower:
    """Reads a growing log piece by piece; a log of days costs no more than its newest lines."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the events in whole lines that were added since the last call."""
        size = storage.size(self._path) if storage.exists(self._path) else 0
        if size <= self._offset:
            return []
        data = storage.get_range(self._path, self._offset, size - self._offset)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(parse(whole))


def parse(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the events in the whole lines of `data`."""
    for line in data.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
