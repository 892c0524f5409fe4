"""What a run tells while it runs: log.jsonl for programs, TensorBoard events for people.

The driver tells of validation, beside it: a file has one writer.
"""

import time
from typing import Any, Self

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from imagen import manifest, storage
from imagen.retrying import PATIENT, Patience
from runtime import log
from runtime.log import JsonLog
from runtime.wandb_run import WandbRun
from train import results
from train.curves import wandb_run
from train.job import Job

EVENTS: Any = event_pb2  # generated: type checkers cannot see the classes
SUMMARIES: Any = summary_pb2
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
VALIDATION = "validation"
SCALARS = (
    *("loss", "grad_norm", "lr", "images_per_s", "data_wait", "mfu", "memory_gb"),
    *("world_size", "starts", "bad_samples", "skipped_steps"),
)
BAD = "bad/"
"""Before the reason, in the names of the counts of bad samples."""


class RunLog:
    """The logs of one run directory."""

    def __init__(self, run_dir: str, images_seen: int, wandb: WandbRun | None = None) -> None:
        self._json = JsonLog(storage.join(run_dir, LOG))
        self._wandb = wandb
        folder = storage.join(run_dir, TENSORBOARD)
        # object stores cannot append; there, log.jsonl is the record
        self._events = EventFile(storage.local(folder)) if storage.is_local(folder) else None
        if self._events is not None:
            self._events.restart(images_seen)

    @classmethod
    def of(cls, job: Job, images_seen: int) -> Self:
        """Open the logs of a job's run, with the curves that its config asks for."""
        return cls(job.run_dir, images_seen, wandb_run(job))

    def event(self, event: str, **fields: Any) -> None:
        """Note something that happened: a start, a checkpoint, a bad sample."""
        self._json.write(event=event, **fields)

    def progress(self, images_seen: int, **fields: Any) -> None:
        """Note how training goes at `images_seen`."""
        self._json.write(images_seen=images_seen, **fields)
        curves = [name for name in fields if name in SCALARS or name.startswith(BAD)]
        values = {name: float(fields[name]) for name in curves}
        for writer in (self._events, self._wandb):
            if writer is not None:
                writer.scalars(images_seen, values)

    def flush(self, patience: Patience = PATIENT) -> None:
        """Publish the record, now. Raises StorageError."""
        self._json.flush(patience)

    def close(self) -> None:
        """Publish what is buffered."""
        self._json.close()
        for writer in (self._events, self._wandb):
            if writer is not None:
                writer.close()


class ValidationLog:
    """The driver's log of one run's validation results: a line and a point of each curve for each.

    A result that an earlier driver told is not told again.
    """

    def __init__(self, job: Job) -> None:
        path = storage.join(job.run_dir, results.LINES)
        self._told = {line.get("result") for line in log.read(path)}
        self._json = JsonLog(path)
        folder = storage.join(job.run_dir, TENSORBOARD, VALIDATION)
        # of its own: TensorBoard reads the files of a folder one after another
        self._events = EventFile(storage.local(folder)) if storage.is_local(folder) else None
        self._wandb = wandb_run(job, VALIDATION)

    def tell(self, result: dict[str, Any]) -> None:
        """Note a result."""
        own = manifest.fingerprint(result)
        if own in self._told:
            return
        self._told.add(own)
        values, images_seen = results.scalars(result), result["images_seen"]
        facts = {"bad": result.get("bad", {}), "result": own}
        self._json.write(event=VALIDATION, images_seen=images_seen, **values, **facts)
        for writer in (self._events, self._wandb):
            if writer is not None:
                writer.scalars(images_seen, {f"{VALIDATION}/{k}": v for k, v in values.items()})

    def close(self) -> None:
        """Publish what is buffered."""
        self._json.close()
        for writer in (self._events, self._wandb):
            if writer is not None:
                writer.close()


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
