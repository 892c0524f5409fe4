"""What must outlive a rank: its log, snapshots, checkpoints and, last, the run's manifest."""

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import imagen
from imagen import checkpoint, manifest, snapshot, storage
from imagen.data.samples import Bad
from imagen.errors import StorageError
from imagen.retrying import PATIENT, Patience, patiently
from train import ema, leftovers, retention, rundir
from train.job import Job
from train.logs import RunLog
from train.loop import Trainer, crossed
from train.meter import Meter
from train.past import Past
from train.quarantine import Quarantine
from train.saving import Saver

SNAPSHOT_S = 1800.0
"""How long is insisted on a snapshot, which is one or more whole files."""
HASTY = Patience(deadline_s=30.0)


class Keeper:
    """Writes what must outlive a rank. Snapshots and logs are rank 0's, checkpoints all ranks'."""

    def __init__(
        self, job: Job, trainer: Trainer, identity: dict[str, Any], past: Past, saver: Saver
    ) -> None:
        self.job, self.trainer, self.identity = job, trainer, identity
        self.past, self.saver = past, saver
        self.alive = False
        self.writes = trainer.world.rank == 0
        self.earlier = retention.found(job) if self.writes else []
        self.starts = job.attempts.count_starts() if self.writes else 0
        self.log = RunLog.of(job, trainer.images_seen) if self.writes else None
        self.quarantine = Quarantine(job.run_dir) if self.writes else None
        self.meter = Meter.of(trainer)
        saver.logs.append(self.flush)

    def start(self) -> None:
        """Note the start, and what is done otherwise than before it."""
        images_seen = self.trainer.images_seen
        if self.log is not None:
            self._tell_start(self.log)
        if images_seen == 0 and (self.job.train.validate or self.job.train.grid):
            self._save("start", snap=True, save=False)  # an earlier start may have had others

    def _tell_start(self, log: RunLog) -> None:
        world, images_seen = self.trainer.world, self.trainer.images_seen
        log.event(
            "start",
            images_seen=images_seen,
            world_size=world.size,
            device=str(world.device),
            launch=self.job.launch,
            pid=os.getpid(),
            node=socket.gethostname(),
        )
        recipe = self.past.recipe_changed(images_seen)
        if recipe:
            log.event("recipe_changed", images_seen=images_seen, differences=recipe)
        identity = self.past.identity_changed(images_seen)
        if identity:
            log.event("identity_changed", images_seen=images_seen, differences=identity)

    def _lacks_snapshot(self) -> bool:
        """Tell on all ranks alike whether the snapshot of now is to be written."""
        path = storage.join(self.job.run_dir, self._snapshot_name(), snapshot.MANIFEST)
        lacks = self.writes and manifest.read_if_complete(path, snapshot.KIND) is None
        return self.trainer.world.broadcast(lacks)

    def after_step(self, before: int) -> None:
        """Log, snapshot and checkpoint where one of their intervals has ended."""
        self._tell_saved()
        train, now = self.job.train, self.trainer.images_seen
        log, snap, save = (
            crossed(every, before, now, train.total)
            for every in (train.log_every, train.snapshot_every, train.checkpoint_every)
        )
        if log or save:  # on all ranks; a checkpoint holds totals of everything before it
            self._look()
        self._save("end" if now >= train.total else "interval", snap, save)

    def save_now(self, reason: str) -> None:
        """Save a checkpoint, and return when it is complete; all ranks call this together.

        The log gets no line that a run without a notice would not have.
        """
        if self.saver.newest != self.trainer.images_seen:
            sums, bad = self.trainer.so_far()
            self._tell_bad(bad)
            self._tell_alive()
            self._save(reason, snap=False, save=True, interval=sums)
        self.saver.wait()
        self._tell_saved(reason)
        with contextlib.suppress(StorageError):  # the end is near: no time to insist
            self.flush(HASTY)

    def _look(self) -> None:
        """Tell how training goes; a collective."""
        loss, bad = self.trainer.look()
        self._tell_bad(bad)
        if self.log is not None and self.quarantine is not None:
            self._tell(self.log, self.quarantine, loss)
        self._tell_alive()

    def _tell_bad(self, bad: list[Bad]) -> None:
        if self.log is None or self.quarantine is None:
            return
        for sample in bad:
            if self.quarantine.note(sample):
                self.log.event("bad_sample", **asdict(sample))

    def _tell_alive(self) -> None:
        if self.writes and not self.alive:
            self.job.attempts.alive(self.past.number)
            self.alive = True

    def _tell(self, log: RunLog, quarantine: Quarantine, loss: float) -> None:
        images_seen = self.trainer.images_seen
        log.progress(
            images_seen,
            step=images_seen // self.job.train.global_batch,
            loss=loss,
            **self.trainer.last,
            **self.meter.look(images_seen),
            world_size=self.trainer.world.size,
            starts=self.starts,
            **asdict(self.trainer.counts),
            **{f"bad/{reason}": count for reason, count in quarantine.counts().items()},
        )

    def _tell_saved(self, notice: str = "") -> None:
        """Log the checkpoints that are complete; that of now is, whatever else for, for `notice`.

        An interval may end in the very step of a notice: then its checkpoint is the one asked for.
        """
        for saved in self.saver.finished():
            if self.log is not None:
                fields = asdict(saved) | {
                    key: round(getattr(saved, key), 3) for key in ("seconds", "waited_s")
                }
                if notice and saved.images_seen == self.trainer.images_seen:
                    fields["reason"] = notice
                self.log.event("checkpoint", **fields)

    def _save(
        self, reason: str, snap: bool, save: bool, interval: dict[str, float] | None = None
    ) -> None:
        """Begin to write a snapshot, a checkpoint, or both; all ranks call this together.

        What a checkpoint says is past is there: its snapshot is complete before it. `interval`:
        what the next line of the log will be made of, when the one now is not at its end.
        """
        first = self._snapshot() if snap else None
        if save:
            now, meta = self.trainer.images_seen, self._meta()
            meta |= {} if interval is None else {"interval": interval}
            self.saver.save(now, self.trainer.share_of_state(), meta, reason, first)
        elif snap:
            self.saver.do(first)

    def _meta(self) -> dict[str, Any]:
        counts = asdict(self.trainer.counts)
        return {"identity": self.identity, "counts": counts, **self.past.meta()}

    def _provenance(self) -> dict[str, Any]:
        return {
            "images_seen": self.trainer.images_seen,
            "data_fingerprint": self.identity["data fingerprint"],
            "encoder_fingerprint": self.identity["encoder fingerprint"],
            "seed": self.job.config.seed,
            "previous_size": self.identity["size of the member before"],
            "train": self.past.recipe,
            **leftovers.initial_weights(self.identity),
            **self.past.earlier(),
            "code_version": imagen.__version__,
        }

    def _snapshot(self) -> Callable[[], None] | None:
        """Copy the weights; return what writes them as a snapshot, on the rank that does."""
        weights = self.trainer.snapshot(with_raw=self.job.train.validate > 0)
        if not self.writes:
            return None
        folder = storage.join(self.job.run_dir, self._snapshot_name())
        config, provenance = self.job.config.members[self.job.member], self._provenance()
        now = self.trainer.images_seen
        averages = weights.pop(ema.MAIN)

        def write() -> None:
            snapshot.save(folder, self.job.member, config, averages, provenance, weights)
            retention.snapshots(self.job, now, self.earlier)

        return lambda: patiently(write, folder, Patience(deadline_s=SNAPSHOT_S))

    def _snapshot_name(self) -> str:
        name = checkpoint.folder_name(self.trainer.images_seen)
        return storage.join(rundir.SNAPSHOTS, name)

    def end(self) -> None:
        """Wait for the last checkpoint, leave the last snapshot, and note the end."""
        self.saver.wait()
        if self._lacks_snapshot():  # somebody deleted it
            self._save("end", snap=True, save=False)
            self.saver.wait()
        self._tell_saved()
        if self.log is not None:
            self.log.event("done", images_seen=self.trainer.images_seen)

    def flush(self, patience: Patience = PATIENT) -> None:
        """Publish what the log has, now. Raises StorageError."""
        for log in (self.log, self.quarantine):
            if log is not None:
                log.flush(patience)

    def close(self) -> None:
        """Publish what the log has, however the training ended."""
        for log in (self.log, self.quarantine):
            if log is not None:
                log.close()

    def finish(self) -> None:
        """Say that the run is done, last of all."""
        if not self.writes:
            return
        body = {
            "member": self.job.member,
            "images_seen": self.trainer.images_seen,
            "snapshot": self._snapshot_name(),
            "identity": self.identity,
            "recipe": self.past.recipe,
            **self.past.asked(),
            **self.past.earlier(),
            **asdict(self.trainer.counts),
            "code_version": imagen.__version__,
        }
        path = storage.join(self.job.run_dir, rundir.MANIFEST)
        manifest.write(path, rundir.KIND, body)
