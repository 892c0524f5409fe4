"""What one rank of a run does, from the newest checkpoint to the end. Knows nothing of Ray."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import imagen
from imagen import checkpoint, manifest, snapshot, storage
from imagen.data.embeddings import EmbeddingSet
from imagen.data.order import Order, hash_key
from imagen.data.prepared import Prepared
from imagen.network.unet import UNetConfig, build
from train import data, rundir
from train.attempts import Launch
from train.config import TrainConfig, TrainStageConfig
from train.logs import RunLog
from train.loop import Stopwatch, Trainer, World, crossed

CACHE = os.path.join(tempfile.gettempdir(), "imagen-cache")
"""Local copies of remote shards; local data sets are read in place."""

_INIT = 64
"""Purpose of the seed of the initial weights, beside those of imagen.data.randomness."""


@dataclass(frozen=True, slots=True)
class Job:
    """Which member of which config to train; `launch` is unique to one call of the program."""

    config: TrainStageConfig
    member: str
    launch: str

    @property
    def train(self) -> TrainConfig:
        """How the member is trained."""
        return self.config.of(self.member)

    @property
    def run_dir(self) -> str:
        """Where everything of the run is."""
        return self.config.run_dir(self.member)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The data of a run and its order."""

    prepared: Prepared
    embeddings: EmbeddingSet
    order: Order
    identity: dict[str, Any]

    @classmethod
    def open(cls, config: TrainStageConfig, member: str) -> "Inputs":
        """Open the data of a member. Raises ShardError, ConfigError."""
        train = config.of(member)
        prepared = Prepared.open(config.index, CACHE)
        embeddings = EmbeddingSet.find(config.embeddings, config.text, prepared, CACHE)
        sizes = [shard.train for shard in prepared.shards]
        order = Order(sizes, config.seed, train.lanes, train.window, train.global_batch)
        identity = rundir.identity(config, member, prepared.fingerprint, embeddings.fingerprint)
        return cls(prepared, embeddings, order, identity)

    def samples(self, config: TrainStageConfig, member: str) -> data.Samples:
        """Return the training samples of a member by position."""
        draws = data.Draws(
            seed=config.seed,
            size=config.members[member].size,
            previous_size=config.previous_size(member),
            channels=config.members[member].network.channels,
            caption_drop=config.of(member).caption_drop,
        )
        return data.Samples(self.prepared, self.embeddings, self.order, draws)


def initial(config: UNetConfig, seed: int) -> nn.Module:
    """Return a new network; the same weights on every rank and machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash_key(seed, _INIT)) >> 1)
        return build(config)


def run_rank(job: Job, world: World) -> None:
    """Train this rank's share until the run is done, or return when the launch is given up.

    Every error is recorded in the run directory before it is raised.
    """
    launch, number, images_seen = Launch(job.run_dir, job.launch), 0, 0
    try:
        found = checkpoint.latest(_checkpoints(job)) if world.rank == 0 else None
        decision = _decide(launch, found) if world.rank == 0 else None
        images_seen, number = world.broadcast(decision)
        if number < 0:
            return
        if world.rank > 0 and images_seen:  # the one that rank 0 took, whatever is newest now
            found = checkpoint.load(_checkpoints(job), images_seen)
        _train(job, world, found)
    except Exception as err:
        launch.fail(number, world.rank, images_seen, err)
        raise


def _checkpoints(job: Job) -> str:
    return storage.join(job.run_dir, rundir.CHECKPOINTS)


def _decide(launch: Launch, found: checkpoint.Checkpoint | None) -> tuple[int, int]:
    """Return (images seen so far, number of this start), or a negative number to give up."""
    images_seen = found.images_seen if found else 0
    if launch.given_up(images_seen) is not None:
        return images_seen, -1
    return images_seen, launch.start(images_seen)


def _train(job: Job, world: World, found: checkpoint.Checkpoint | None) -> None:
    inputs = Inputs.open(job.config, job.member)
    member = job.config.members[job.member]
    net = initial(member.network, job.config.seed).to(world.device).train()
    trainer = Trainer(net, member, job.train, world, job.config.seed)
    if found is not None:
        rundir.check_identity(job.run_dir, found.meta["identity"], inputs.identity)
        trainer.restore(found.images_seen, found.tensors, found.meta["counts"])
    keeper = Keeper(job, trainer, inputs.identity)
    keeper.start()
    for parts in _steps(job, world, inputs, trainer.images_seen):
        before = trainer.images_seen
        trainer.step(parts)
        keeper.after_step(before)
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


class Keeper:
    """Writes what must outlive a rank: logs, snapshots, checkpoints. Only rank 0 writes."""

    def __init__(self, job: Job, trainer: Trainer, identity: dict[str, Any]) -> None:
        self.job, self.trainer, self.identity = job, trainer, identity
        self.writes = trainer.world.rank == 0
        self.log = RunLog(job.run_dir, trainer.images_seen) if self.writes else None
        self.watch = Stopwatch(trainer.images_seen)
        self.told: set[str] = set()

    def start(self) -> None:
        """Note the start."""
        if self.log is not None:
            world = self.trainer.world
            self.log.event(
                "start",
                images_seen=self.trainer.images_seen,
                world_size=world.size,
                device=str(world.device),
                launch=self.job.launch,
                pid=os.getpid(),
            )

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

    def _provenance(self) -> dict[str, Any]:
        return {
            "images_seen": self.trainer.images_seen,
            "data_fingerprint": self.identity["data fingerprint"],
            "encoder_fingerprint": self.identity["encoder fingerprint"],
            "seed": self.job.config.seed,
            "previous_size": self.identity["size of the member before"],
            "train": rundir.recipe(self.job.config, self.job.member),
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
        meta = {"identity": self.identity, "counts": asdict(self.trainer.counts)}
        folder = _checkpoints(self.job)
        checkpoint.save(folder, self.trainer.images_seen, self.trainer.state(), meta)
        checkpoint.retain(folder, rundir.KEEP_CHECKPOINTS)
        seconds = round(time.perf_counter() - began, 3)
        self.log.event("checkpoint", images_seen=self.trainer.images_seen, seconds=seconds)

    def finish(self) -> None:
        """Say that the run is done, last of all."""
        if self.log is None:
            return
        path = storage.join(self.job.run_dir, self._snapshot_name(), snapshot.MANIFEST)
        if manifest.read_if_complete(path, snapshot.KIND) is None:  # somebody deleted it
            self._snapshot()
        self.log.event("done", images_seen=self.trainer.images_seen)
        self.log.close()
        body = {
            "member": self.job.member,
            "images_seen": self.trainer.images_seen,
            "snapshot": self._snapshot_name(),
            "identity": self.identity,
            "recipe": rundir.recipe(self.job.config, self.job.member),
            **asdict(self.trainer.counts),
            "code_version": imagen.__version__,
        }
        manifest.write(storage.join(self.job.run_dir, rundir.MANIFEST), rundir.KIND, body)
