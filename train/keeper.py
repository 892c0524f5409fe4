"""What must outlive a rank: its log, snapshots, checkpoints and, last, the run's manifest."""

import os
import time
from dataclasses import asdict
from typing import Any

import imagen
from imagen import checkpoint, manifest, snapshot, storage
from train import rundir
from train.job import Job
from train.logs import RunLog
from train.loop import Stopwatch, Trainer, crossed


class Keeper:
    """Writes what must outlive a rank: logs, snapshots, checkpoints. Only rank 0 writes."""

    def __init__(
        self,
        job: Job,
        trainer: Trainer,
        identity: dict[str, Any],
        earlier: list[dict[str, Any]],
        number: int,
    ) -> None:
        self.job, self.trainer, self.identity, self.number = job, trainer, identity, number
        recipe = rundir.recipe(job.config, job.member)
        self.recipes = rundir.recipes(earlier, trainer.images_seen, recipe)
        self.alive = False
        self.writes = trainer.world.rank == 0
        self.log = RunLog(job.run_dir, trainer.images_seen) if self.writes else None
        self.watch = Stopwatch(trainer.images_seen)
        self.told: set[str] = set()

    def start(self) -> None:
        """Note the start, and what is done otherwise than before it."""
        if self.log is None:
            return
        world, images_seen = self.trainer.world, self.trainer.images_seen
        self.log.event(
            "start",
            images_seen=images_seen,
            world_size=world.size,
            device=str(world.device),
            launch=self.job.launch,
            pid=os.getpid(),
        )
        *earlier, last = self.recipes
        if earlier and last["from"] == images_seen:
            lines = rundir.differences(earlier[-1]["recipe"], last["recipe"])
            self.log.event("recipe_changed", images_seen=images_seen, differences=lines)

    def after_step(self, before: int) -> None:
        """Log, snapshot and checkpoint where one of their intervals has ended."""
        train, now = self.job.train, self.trainer.images_seen
        log, snap, save = (
            crossed(every, before, now, train.total)
            for every in (train.log_every, train.snapshot_every, train.checkpoint_every)
        )
        if log or save:  # on all ranks; a checkpoint holds totals of everything before it
            loss, bad = self.trainer.look()
            self._tell(loss, bad)
        if snap and self.writes:
            self._snapshot()
        if save and self.writes:  # after the snapshot: what a checkpoint says is past is there
            self._checkpoint()

    def _tell(self, loss: float, bad: list[tuple[str, str]]) -> None:
        if self.log is None:
            return
        for key, reason in bad:
            if key not in self.told:
                self.told.add(key)
                self.log.event("bad_sample", key=key, reason=reason)
        self.log.progress(
            self.trainer.images_seen,
            step=self.trainer.images_seen // self.job.train.global_batch,
            loss=loss,
            **self.trainer.last,
            images_per_s=round(self.watch.rate(self.trainer.images_seen), 1),
            world_size=self.trainer.world.size,
            **asdict(self.trainer.counts),
        )
        if not self.alive:
            self.job.attempts.alive(self.number)
            self.alive = True

    def _earlier(self) -> dict[str, Any]:
        *earlier, _ = self.recipes
        return {"earlier_recipes": earlier} if earlier else {}

    def _provenance(self) -> dict[str, Any]:
        return {
            "images_seen": self.trainer.images_seen,
            "data_fingerprint": self.identity["data fingerprint"],
            "encoder_fingerprint": self.identity["encoder fingerprint"],
            "seed": self.job.config.seed,
            "previous_size": self.identity["size of the member before"],
            "train": self.recipes[-1]["recipe"],
            **self._earlier(),
            "code_version": imagen.__version__,
        }

    def _snapshot(self) -> None:
        folder = storage.join(self.job.run_dir, self._snapshot_name())
        config = self.job.config.members[self.job.member]
        snapshot.save(folder, self.job.member, config, self.trainer.ema_state(), self._provenance())

    def _snapshot_name(self) -> str:
        name = checkpoint.folder_name(self.trainer.images_seen)
        return storage.join(rundir.SNAPSHOTS, name)

    def _checkpoint(self) -> None:
        assert self.log is not None, "only rank 0 writes"
        began = time.perf_counter()
        counts = asdict(self.trainer.counts)
        meta = {"identity": self.identity, "counts": counts, "recipes": self.recipes}
        folder = self.job.checkpoints
        checkpoint.save(folder, self.trainer.images_seen, self.trainer.state(), meta)
        checkpoint.retain(folder, rundir.KEEP_CHECKPOINTS)
        seconds = round(time.perf_counter() - began, 3)
        self.log.event("checkpoint", images_seen=self.trainer.images_seen, seconds=seconds)

    def end(self) -> None:
        """Leave the last snapshot, and note the end."""
        if self.log is None:
            return
        path = storage.join(self.job.run_dir, self._snapshot_name(), snapshot.MANIFEST)
        if manifest.read_if_complete(path, snapshot.KIND) is None:  # somebody deleted it
            self._snapshot()
        self.log.event("done", images_seen=self.trainer.images_seen)

    def close(self) -> None:
        """Publish what the log has, however the training ended."""
        if self.log is not None:
            self.log.close()

    def finish(self) -> None:
        """Say that the run is done, last of all."""
        if not self.writes:
            return
        body = {
            "member": self.job.member,
            "images_seen": self.trainer.images_seen,
            "snapshot": self._snapshot_name(),
            "identity": self.identity,
            "recipe": self.recipes[-1]["recipe"],
            **self._earlier(),
            **asdict(self.trainer.counts),
            "code_version": imagen.__version__,
        }
        manifest.write(storage.join(self.job.run_dir, rundir.MANIFEST), rundir.KIND, body)
