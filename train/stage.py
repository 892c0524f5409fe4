"""The train stage: what is to do, what is done, and doing it."""

import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from imagen import config as configs
from imagen import storage
from imagen.errors import ImagenError
from imagen.project import absolute
from runtime import session
from runtime.state import StageState, is_locked, lock
from train import initial, leftovers, rundir
from train.checks import check
from train.config import TrainStageConfig
from train.dryrun import describe
from train.job import Inputs, Job

__all__ = ["absolute", "check", "describe", "run", "state"]


def state(config: TrainStageConfig, member: str) -> StageState:
    """Return how far the training of a member is, from its run directory."""
    run_dir, total = config.run_dir(member), config.of(member).total
    seen, (done, damage) = rundir.newest_images(run_dir), _finished(run_dir)
    pid = is_locked(run_dir)
    if pid is not None:
        status, detail = "running", f"{seen:,} of {total:,} images, process {pid}"
    elif done is None:
        status = "partial" if seen or damage else "missing"
        detail = damage or f"{seen:,} of {total:,} images"
    else:
        reasons = _stale(config, member, done)
        status = "stale" if reasons else "done"
        detail = "; ".join(reasons) or f"{done['images_seen']:,} images"
    snapshot = (storage.join(run_dir, done["snapshot"]),) if done else ()
    return StageState(stage=f"train {member}", status=status, detail=detail, outputs=snapshot)


def _finished(run_dir: str) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest of a finished run, else None, and why it cannot be read."""
    try:
        return rundir.finished(run_dir), ""
    except ImagenError as err:
        return None, err.message


def _stale(config: TrainStageConfig, member: str, done: dict[str, Any]) -> list[str]:
    """Return why a finished run is not what the config asks for."""
    try:
        wanted = Inputs.open(config, member).identity
    except ImagenError as err:
        return [err.message]
    old, new = done["recipe"], rundir.recipe(config, member)
    return rundir.differences(done["identity"], wanted) + rundir.differences(old, new)


def run(
    config: TrainStageConfig,
    member: str,
    address: str | None = None,
    accept: Sequence[str] = (),
) -> bool:
    """Train a member to the end of its run; False when there was nothing to do.

    Snapshots whose validation is missing get it, also those of a run that is finished.
    """
    asked = config.of(member).init_from
    config = initial.settled(absolute(config), member)
    identity = check(config, member, accept).identity  # workers open their own inputs
    run_dir = config.run_dir(member)
    launch = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
    job = Job(config, member, launch, tuple(accept), asked)
    done = rundir.finished(run_dir)
    if done is not None and done["images_seen"] == config.of(member).total:
        _validate_rest(job, address)
        return False
    rundir.check_writable(run_dir)
    with lock(run_dir):
        if not rundir.newest_images(run_dir):
            _begin_anew(config, member, identity)
        storage.put(storage.join(run_dir, rundir.CONFIG), configs.dump_yaml(config).encode())
        storage.delete(storage.join(run_dir, rundir.MANIFEST))  # not done any more, if it was
        with session.connect(address):
            from train.elastic import fit  # imports Ray, after its settings

            fit(job)
    return True


def _begin_anew(config: TrainStageConfig, member: str, identity: dict[str, Any]) -> None:
    """Delete what an earlier start left that had another config, and no checkpoint yet."""
    gone = leftovers.delete(config, member, identity)
    if gone:
        told = f"{len(gone)} snapshots of an earlier start with another config are deleted"
        print(f"train {member} begins anew: {told}: {', '.join(gone)}", file=sys.stderr)


def _validate_rest(job: Job, address: str | None) -> None:
    """Validate the snapshots of a finished run that nobody has validated yet, or told of."""
    from train.validator import Validator, is_complete

    if is_complete(job):
        return
    with lock(job.run_dir), session.connect(address), Validator(job):
        pass
