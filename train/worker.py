"""What one rank of a run does, from the newest checkpoint to the end. Knows nothing of Ray."""

import os
import shutil
import socket
from collections.abc import Iterator

import torch

from imagen import checkpoint, storage
from imagen.data.order import hash_key
from imagen.errors import CheckpointError, ConfigError, StorageError
from imagen.network.config import UNetConfig
from imagen.network.unet import UNet, build
from runtime.log import JsonLog
from train import data, rundir
from train.attempts import Launch
from train.config import TrainConfig
from train.job import Inputs, Job
from train.keeper import Keeper
from train.logs import LOG
from train.loop import Trainer, World

_INIT = 64
"""Purpose of the seed of the initial weights, beside those of imagen.data.randomness."""


def initial(config: UNetConfig, seed: int) -> UNet:
    """Return a new network; the same weights on every rank and machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash_key(seed, _INIT)) >> 1)
        return build(config)


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


def run_rank(job: Job, world: World) -> None:
    """Train this rank's share until the run is done, or return when the launch is given up.

    Every error is recorded in the run directory before it is raised.
    """
    number, images_seen = 0, 0
    try:
        found = _newest(job) if world.rank == 0 else None
        decision = _decide(job.attempts, found) if world.rank == 0 else None
        images_seen, number = world.broadcast(decision)
        if number < 0:
            return
        if world.rank > 0 and images_seen:
            found = _same(job, images_seen)
        _train(job, world, found, number)
    except Exception as err:
        job.attempts.fail(number, world.rank, images_seen, err)
        raise


def _newest(job: Job) -> checkpoint.Checkpoint | None:
    """Return the newest valid checkpoint; the log tells what is wrong with newer ones."""
    damaged: list[tuple[int, str]] = []
    found = checkpoint.latest(job.checkpoints, lambda *about: damaged.append(about))
    if damaged:
        with JsonLog(storage.join(job.run_dir, LOG)) as log:
            for images_seen, reason in damaged:
                log.write(event="damaged_checkpoint", checkpoint=images_seen, reason=reason)
    return found


def _same(job: Job, images_seen: int) -> checkpoint.Checkpoint:
    """Return the checkpoint that rank 0 took, whatever is newest now.

    Raises StorageError, which is tried again: rank 0 could read it a moment ago.
    """
    try:
        return checkpoint.load(job.checkpoints, images_seen)
    except CheckpointError as err:
        raise StorageError(f"another rank took a checkpoint that is gone: {err.message}") from err


def _decide(launch: Launch, found: checkpoint.Checkpoint | None) -> tuple[int, int]:
    """Return (images seen so far, number of this start), or a negative number to give up."""
    images_seen = found.images_seen if found else 0
    if launch.given_up(images_seen) is not None:
        return images_seen, -1
    return images_seen, launch.start(images_seen)


def _train(job: Job, world: World, found: checkpoint.Checkpoint | None, number: int) -> None:
    inputs = Inputs.open(job.config, job.member)
    member = job.config.members[job.member]
    net = initial(member.network, job.config.seed).to(world.device).train()
    prepare(net, job.train, world.device)
    trainer = Trainer(net, member, job.train, world, job.config.seed)
    if found is not None:
        identity = rundir.known_identity(found.meta["identity"])
        rundir.check_identity(job.run_dir, identity, inputs.identity)
        trainer.restore(found.images_seen, found.tensors, found.meta["counts"])
    first = trainer.images_seen
    earlier = rundir.known_recipes(found.meta.get("recipes", [])) if found else []
    keeper = Keeper(job, trainer, inputs.identity, earlier, number)
    try:
        keeper.start()
        for parts in _steps(job, world, inputs, trainer.images_seen):
            before = trainer.images_seen
            if before == first:
                trainer.check(parts[0])
            trainer.step(parts)
            keeper.after_step(before)
        keeper.end()
    finally:
        keeper.close()
    keeper.finish()


def _steps(
    job: Job, world: World, inputs: Inputs, images_seen: int
) -> Iterator[list[data.Microbatch]]:
    """Yield this rank's microbatches of each step, from `images_seen` to the end."""
    train = job.train
    parts = data.shares(train.global_batch, train.microbatch, world.rank, world.size)
    first = images_seen // train.global_batch
    positions = data.Positions(parts, train.global_batch, first, train.steps)
    samples = inputs.samples(job.config, job.member)
    batches = iter(
        data.loader(samples, positions, train.loader_workers, world.device.type == "cuda")
    )
    for _ in range(first, train.steps):
        yield [next(batches) for _ in parts]
