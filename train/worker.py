"""What one rank of a run does, from the newest checkpoint to the end. Knows nothing of Ray."""

import contextlib
import os
import shutil
import socket
from dataclasses import dataclass

import torch

from imagen import checkpoint, storage
from imagen.checkpoint import Contents
from imagen.errors import ConfigError, DamagedError, ImagenError, StorageError
from imagen.network.unet import UNet
from runtime.log import JsonLog
from train import initial, notice, rundir
from train.audit import Audit
from train.config import TrainConfig
from train.feed import feed
from train.job import Inputs, Job
from train.keeper import Keeper
from train.logs import LOG
from train.loop import Trainer, World
from train.past import Past
from train.saving import Saver


def prepare(net: UNet, config: TrainConfig, device: torch.device) -> None:
    """Make a network train as the config says, with the same weights: less memory, compiled.

    Raises ConfigError when it is to be compiled where there is no compiler: only a worker knows.
    """
    if config.checkpoint_levels:
        net.checkpoint_levels(config.checkpoint_levels)
    if config.compile:
        _check_compiler(device)
        net.compile_blocks()


def _check_compiler(device: torch.device) -> None:
    """Raise ConfigError unless torch.compile finds what it compiles with for `device`."""
    cuda = device.type == "cuda"
    variable, usual = ("CC", ("gcc", "clang")) if cuda else ("CXX", ("g++", "clang++"))
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"compile is true, but {socket.gethostname()} has no compiler for torch.compile: "
            f"no {' or '.join(names)}",
            f"install {usual[0]} there, set {variable} to another one, or set compile=false",
        )


@dataclass(slots=True)
class Start:
    """One start of a launch, as it is recorded."""

    number: int = 0
    images_seen: int = 0
    """Of the checkpoint that it goes on from."""


def run_rank(job: Job, world: World) -> None:
    """Train this rank's share until the run is done, or return when the launch is given up.

    Every error is recorded in the run directory before it is raised.
    """
    start = Start()
    try:
        saved = world.broadcast(checkpoint.saved(job.checkpoints) if world.rank == 0 else None)
        start.images_seen = max(saved, default=0)
        start.number = _decide(job, world, start.images_seen)
        if start.number >= 0:
            _train(job, world, start, saved)
    except Exception as err:
        with contextlib.suppress(StorageError):  # then the error itself has to do
            job.attempts.fail(start.number, world.rank, start.images_seen, err)
        raise


def _decide(job: Job, world: World, images_seen: int) -> int:
    """Return the number of this start, the same on all ranks; a negative one to give up."""
    number = 0
    if world.rank == 0:
        given_up = job.attempts.given_up(images_seen) is not None
        number = -1 if given_up else job.attempts.start(images_seen)
    return world.broadcast(number)


def _train(job: Job, world: World, start: Start, saved: list[int]) -> None:
    with contextlib.ExitStack() as stack:
        inputs = Inputs.open(job.config, job.member)
        saver = Saver(job, world)
        stack.callback(saver.close)
        trainer, past = _restored(job, inputs, saver, start, saved)
        keeper = Keeper(job, trainer, inputs.identity, past, saver)
        stack.callback(keeper.close)
        audit = Audit(job, start.number, world)
        stack.callback(audit.close)
        saver.logs.append(audit.flush)
        keeper.start()
        _steps(job, inputs, trainer, keeper, audit)
        keeper.end()
    keeper.finish()


def _steps(job: Job, inputs: Inputs, trainer: Trainer, keeper: Keeper, audit: Audit) -> None:
    """Train to the end."""
    world, total, first = trainer.world, job.train.total, trainer.images_seen
    with feed(job, inputs, world, first) as batches:
        while trainer.images_seen < total:
            with keeper.meter.waiting():
                parts = next(batches)
            before = trainer.images_seen
            if before == first:
                trainer.check(parts[0])
            trainer.step(parts)
            audit.note(before // job.train.global_batch, parts)
            keeper.after_step(before)
            reason = notice.agreed(world)
            if reason is not None:
                keeper.save_now(reason)
                notice.after_save(reason)


def _restored(
    job: Job, inputs: Inputs, saver: Saver, start: Start, saved: list[int]
) -> tuple[Trainer, Past]:
    """Return a trainer as the newest checkpoint has it that all ranks can read, and its past.

    The log tells what is wrong with newer ones.
    """
    world = saver.world
    for images_seen in reversed(saved):
        try:
            found = _agreed(world, job.checkpoints, images_seen)
            changes = _changes(job, inputs, found)
            trainer = _trainer(job, world, begun=True)
            saver.read(trainer.readable(found.layout), found)
        except DamagedError as err:
            if world.rank == 0:
                with JsonLog(storage.join(job.run_dir, LOG)) as log:
                    told = {"checkpoint": images_seen, "reason": err.message}
                    log.write(event="damaged_checkpoint", **told)
            continue
        _fall_back(job, world, start, images_seen)
        at = rundir.continued(images_seen, job.train.global_batch)
        trainer.restored(at, found.meta, found.layout)
        return trainer, Past(job, start.number, found.meta, at, changes)
    _fall_back(job, world, start, 0)
    return _trainer(job, world, begun=False), Past(job, start.number, {}, 0, [])


def _agreed(world: World, folder: str, images_seen: int) -> Contents:
    """Return what is in a checkpoint. Raises DamagedError on all ranks when one finds it so.

    And StorageError when one cannot find out: it is not known to be damaged then.
    """
    found, failure = None, None
    try:
        found = checkpoint.look_into(folder, images_seen)
    except ImagenError as err:
        failure = err
    failures = [err for err in world.gather(failure) if err is not None]
    if failures:
        raise min(failures, key=lambda err: isinstance(err, DamagedError))
    assert found is not None, "who did not fail has found it"
    return found


def _changes(job: Job, inputs: Inputs, found: Contents) -> list[str]:
    """Return what of the run's identity has changed, as asked for. Raises CheckpointError."""
    identity = rundir.known_identity(found.meta["identity"])
    return rundir.check_identity(job.run_dir, identity, inputs.identity, job.accept)


def _fall_back(job: Job, world: World, start: Start, images_seen: int) -> None:
    """Record where this start goes on, when that is not where it seemed."""
    if images_seen != start.images_seen:
        start.images_seen = images_seen
        if world.rank == 0:
            job.attempts.fell_back(start.number, images_seen)


def _trainer(job: Job, world: World, begun: bool) -> Trainer:
    """Return a trainer at its start; of a run that has begun, the weights are anything."""
    network = job.config.members[job.member].network
    net = initial.random(network, job.config.seed) if begun else initial.build(job)
    net = net.to(world.device).train()
    prepare(net, job.train, world.device)
    return Trainer(net, job.config.members[job.member], job.train, world, job.config.seed)
