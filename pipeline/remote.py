"""Runs what is not done yet, in order, as jobs on a cluster."""

import contextlib
import time
from collections.abc import Sequence

from imagen.errors import ConfigError, StorageError
from pipeline import submitting
from pipeline.following import Follower
from pipeline.jobs import Cluster, JobInfo, Unreachable
from pipeline.run import Outcome, say
from pipeline.stages import Stage, waves
from pipeline.submitting import Shipment
from runtime import progress

DYING_S = 60.0
LOST_TRIES = 5
"""How often in a row a stage is submitted again whose job was lost with its head."""


def run(cluster: Cluster, shipment: Shipment, stages: Sequence[Stage]) -> Outcome:
    """Run the stages that are not done; what runs already is watched, and not run twice.

    Raises ConfigError when a stage cannot run as it is configured.
    """
    outcome = Outcome()
    for wave in waves(stages):
        _Wave(cluster, shipment, stages, outcome).run(wave)
        if outcome.failed:
            break
    return outcome


class _Wave:
    """Stages that run side by side."""

    def __init__(
        self, cluster: Cluster, shipment: Shipment, line: Sequence[Stage], outcome: Outcome
    ) -> None:
        self.cluster, self.shipment, self.line, self.outcome = cluster, shipment, line, outcome
        self.follower = Follower(cluster)
        self.stages: dict[str, Stage] = {}
        self.losses: dict[str, int] = {}
        self.again: dict[Stage, float] = {}
        """Stages to submit again, and until when their last process may take to end."""

    def run(self, wave: Sequence[Stage]) -> None:
        """Run them to their ends."""
        known = self.cluster.of(self.shipment.out)
        active = {name for name, before in known.items() if before[-1].active}
        due = [stage for stage in wave if stage.name in active or self._is_due(stage)]
        for stage in due:  # all of them before the first is submitted
            if stage.name not in active:
                submitting.check(stage, self.line, self.shipment.config)
        for stage in due:
            self._start(stage)
        trainings = [stage.training for stage in self.stages.values() if stage.training]
        progress.follow(
            {training.member: training.log for training in trainings},
            {training.member: training.images for training in trainings},
            self._finished,
        )

    def _is_due(self, stage: Stage) -> bool:
        state = stage.state()
        if state.status == "running":
            raise StorageError(
                f"{stage.name} is being run by another process: {state.detail}",
                "wait for it to end, then run again",
            )
        if state.status == "done":
            say(f"{stage.name}: done already ({state.detail})")
            return False
        say(f"{stage.name}: {state.status}, {state.detail}")
        return True

    def _start(self, stage: Stage) -> None:
        job, fresh = submitting.submit(self.cluster, self.shipment, stage.name, stage.arguments)
        say(f"{stage.name}: {'submitted as' if fresh else 'is run already by'} job {job.id}")
        self.stages[stage.name] = stage
        self.follower.add(stage.name, job)

    def _finished(self) -> bool:
        for name, job in self.follower.ended().items():
            if job is None or job.lost:
                self._lost(self.stages[name])
            else:
                self._note(self.stages[name], job)
        for stage in list(self.again):
            with contextlib.suppress(Unreachable):  # it is still about to start
                self._go_on(stage)
        return not (self.follower.running or self.again)

    def _lost(self, stage: Stage) -> None:
        """Note that a job went with its cluster."""
        tries = self.losses[stage.name] = self.losses.get(stage.name, 0) + 1
        say(f"{stage.name}: its job was lost with the cluster's head")
        if tries > LOST_TRIES:
            say(f"{stage.name}: given up, its job was lost {tries} times")
            self.outcome.failed[stage.name] = 1
        else:
            self.again[stage] = time.monotonic() + DYING_S

    def _go_on(self, stage: Stage) -> None:
        """Submit a stage again whose job was lost; it goes on from its files."""
        state = stage.state()
        if state.status == "running" and time.monotonic() < self.again[stage]:
            return  # its last process is about to end
        if state.status == "done":
            say(f"{stage.name}: done ({state.detail})")
        else:
            self._start(stage)
        del self.again[stage]

    def _note(self, stage: Stage, job: JobInfo) -> None:
        name, seconds = stage.name, (job.ended_s or time.time()) - job.started_s
        self.outcome.seconds[name] = seconds
        if job.status == "SUCCEEDED":
            _check_done(stage, job)
            say(f"{name}: finished in {seconds:.0f} s")
            return
        self.outcome.failed[name] = job.exit_status or 1
        how = "was stopped" if job.status == "STOPPED" else f"failed, {_reason(job)},"
        say(f"{name}: job {job.id} {how} after {seconds:.0f} s")
        if self.follower.running:
            say(f"{name} has ended; the others go on")


def _reason(job: JobInfo) -> str:
    """Return why a job failed; what its program wrote has been shown."""
    return job.message if job.exit_status is None else f"status {job.exit_status}"


def _check_done(stage: Stage, job: JobInfo) -> None:
    """Raise ConfigError when this machine does not see what a job has done."""
    state = stage.state()
    if state.status != "done":
        raise ConfigError(
            f"job {job.id} has done {stage.name}, but seen from here it is {state.status}: "
            f"{state.detail}",
            "`out` has to be a place that this machine and the cluster both see: a bucket, or a "
            "shared disk; else let the cluster watch: python -m pipeline submit line CONFIG",
        )
