"""Runs what is not done yet, in order, as jobs on a cluster."""

import contextlib
import time
from collections.abc import Sequence

from imagen.errors import ConfigError
from pipeline import submitting
from pipeline.following import Follower
from pipeline.jobs import Cluster, JobInfo, Unreachable
from pipeline.run import Outcome, is_due
from pipeline.stages import Stage, waves
from pipeline.submitting import Shipment
from runtime import progress
from runtime.cli import say

DYING_S = 60.0
LOST_TRIES = 5
"""How often in a row a stage is submitted again whose job was lost with its head."""
LASTED_S = 600.0
"""A job that was at work for so long ends such a row: its head does not break at each start."""
OTHERS_TRIES = 5
"""How many jobs of others a stage waits for, one after the other."""


def run(cluster: Cluster, shipment: Shipment, stages: Sequence[Stage]) -> Outcome:
    """Run the stages that are not done; what runs already is watched, and not run twice.

    Raises ConfigError when a stage cannot run as it is configured.
    """
    outcome = Outcome()
    submitting.check_line(cluster, shipment, stages)
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
        self.started: dict[str, float] = {}
        """Stage -> when its job was first looked at, by the clock of the follower."""
        self.losses: dict[str, int] = {}
        self.own: set[str] = set()
        """Ids of the jobs that this run has submitted."""
        self.others: dict[str, int] = {}
        """Stage -> how many jobs of others it has waited for."""
        self.again: dict[Stage, float] = {}
        """Stages to submit again, and until when their last process may take to end."""

    def run(self, wave: Sequence[Stage]) -> None:
        """Run them to their ends."""
        known = self.cluster.of(self.shipment.out)
        active = {name for name, before in known.items() if before[-1].active}
        here = [s for s in wave if submitting.running(known, self.shipment, s.name, s.arguments)]
        due = [s for s in wave if s in here or is_due(s, s.name in active)]
        for stage in due:  # all of them before the first is submitted
            if stage not in here:
                submitting.check(stage, self.line, self.shipment.config)
        for stage in due:
            self._start(stage)
        trainings = [stage.training for stage in self.stages.values() if stage.training]
        progress.follow(
            {training.member: training.log for training in trainings},
            {training.member: training.images for training in trainings},
            self._finished,
        )

    def _start(self, stage: Stage) -> None:
        try:
            job, fresh = submitting.submit(self.cluster, self.shipment, stage.name, stage.arguments)
            say(f"{stage.name}: {'submitted as' if fresh else 'is run already by'} job {job.id}")
        except submitting.RunsOtherwise as err:
            job, fresh = err.job, False
            say(f"{err.message}: waiting for its end, then it is run as configured here")
        if fresh:
            self.own.add(job.id)
        self.stages[stage.name] = stage
        self.started[stage.name] = time.monotonic()
        self.follower.add(stage.name, job)

    def _finished(self) -> bool:
        for name, job in self.follower.ended().items():
            stage = self.stages[name]
            if job is None or job.lost:
                self._lost(stage)
            elif self._is_others(stage, job):
                self._after_others(stage, job)
            else:
                self._note(stage, job)
        for stage in list(self.again):
            with contextlib.suppress(Unreachable):  # it is still about to start
                self._go_on(stage)
        return not (self.follower.running or self.again)

    def _lost(self, stage: Stage) -> None:
        """Note that a job went with its cluster."""
        started = self.started[stage.name]
        if self.follower.seen_s.get(stage.name, started) - started >= LASTED_S:
            self.losses.pop(stage.name, None)
        tries = self.losses[stage.name] = self.losses.get(stage.name, 0) + 1
        say(f"{stage.name}: its job was lost with the cluster's head")
        self._try_again(stage, tries <= LOST_TRIES, f"its job was lost {tries} times")

    def _is_others(self, stage: Stage, job: JobInfo) -> bool:
        """Tell whether a job that has ended was that of others, and left work.

        A person who stopped just what this run wants done has stopped it for this run, too.
        """
        same = submitting.is_same(job, self.shipment, stage.arguments)
        if job.id in self.own or (job.status == "STOPPED" and same):
            return False
        return job.status != "SUCCEEDED" or stage.state().status != "done"

    def _after_others(self, stage: Stage, job: JobInfo) -> None:
        """Go on after a job that this run did not submit: it may have begun before the last inputs
        were there, or have failed of something else.
        """
        tries = self.others[stage.name] = self.others.get(stage.name, 0) + 1
        say(f"{stage.name}: job {job.id}, which this run did not submit, {job.status.lower()}")
        self._try_again(stage, tries <= OTHERS_TRIES, f"{tries} jobs of others have left it undone")

    def _try_again(self, stage: Stage, patient: bool, why: str) -> None:
        if patient:
            self.again[stage] = time.monotonic() + DYING_S
        else:
            say(f"{stage.name}: given up, {why}")
            self.outcome.failed[stage.name] = 1

    def _go_on(self, stage: Stage) -> None:
        """Submit a stage again whose job was lost, or another's; it goes on from its files."""
        state = stage.state()
        if state.status == "running" and time.monotonic() < self.again[stage]:
            return  # its last process is about to end
        if state.status == "done":
            say(f"{stage.name}: done ({state.detail})")
        else:
            if stage.name in self.others:  # with what it has left
                submitting.check(stage, self.line, self.shipment.config)
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
