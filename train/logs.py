"""What a run tells while it runs: log.jsonl for programs, TensorBoard events for people."""

import time
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from imagen import storage
from runtime.log import JsonLog

EVENTS: Any = event_pb2  # generated: type checkers cannot see the classes
SUMMARIES: Any = summary_pb2
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
    """TensorBoard's own event writer, fed with scalars; its summary API would import far more."""

    def __init__(self, folder: str) -> None:
        self._writer = EventFileWriter(folder)

    def restart(self, step: int) -> None:
        """Tell readers that what other files say after `step` was trained again."""
        log = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        # START drops what is at this step or later
        self._add(EVENTS.Event(step=step + 1, session_log=log))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append one value of each curve."""
        summary = SUMMARIES.Summary(
            value=[SUMMARIES.Summary.Value(tag=t, simple_value=v) for t, v in values.items()]
        )
        self._add(EVENTS.Event(step=step, summary=summary))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()  # a killed run keeps what it has told

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
