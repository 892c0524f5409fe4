"""What a run tells while it runs: log.jsonl for programs, TensorBoard events for people.

The event file is written by hand (TFRecord frames around a few protobuf fields), because importing
tensorboard costs every worker start a second that an elastic run pays again and again.
"""

import os
import socket
import struct
import time
from typing import Any

import google_crc32c

from imagen import storage
from runtime.log import JsonLog

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
SCALARS = ("loss", "grad_norm", "lr", "images_per_s", "world_size", "bad_samples", "skipped_steps")


class RunLog:
    """The logs of one run directory."""

    def __init__(self, run_dir: str, images_seen: int) -> None:
        self._json = JsonLog(storage.join(run_dir, LOG))
        folder = storage.join(run_dir, TENSORBOARD)
        # object stores cannot append; there, log.jsonl is the record
        self._events = EventFile(storage.local(folder)) if storage.is_local(folder) else None
        if self._events is not None:
            self._events.restart(images_seen)

    def event(self, event: str, **fields: Any) -> None:
        """Note something that happened: a start, a checkpoint, a bad sample."""
        self._json.write(event=event, **fields)

    def progress(self, images_seen: int, **fields: Any) -> None:
        """Note how training goes at `images_seen`."""
        self._json.write(images_seen=images_seen, **fields)
        if self._events is not None:
            values = {name: float(fields[name]) for name in SCALARS if name in fields}
            self._events.scalars(images_seen, values)

    def close(self) -> None:
        """Publish what is buffered."""
        self._json.close()
        if self._events is not None:
            self._events.close()


class EventFile:
    """A TensorBoard event file (tensorflow/core/util/event.proto) of scalars."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(os.path.join(folder, name), "xb")  # noqa: SIM115 - closed by close()
        self._write(_bytes(3, b"brain.Event:2"))

    def restart(self, step: int) -> None:
        """Tell readers that what other files say after `step` was trained again."""
        # SessionLog.status START: drops what is at this step or later
        self._write(_varint(2, step + 1) + _bytes(7, _varint(1, 1)))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append one value of each curve."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in values.items()
        )
        self._write(_varint(2, step) + _bytes(5, summary))

    def _write(self, fields: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _masked_crc(data: bytes) -> bytes:
    """Return the CRC-32C as TFRecord masks it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value
