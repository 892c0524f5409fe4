"""The weights that a run starts from: random ones of its seed, or those of a snapshot."""

import dataclasses
import os

import torch

from imagen import config as configs
from imagen import manifest, snapshot, storage
from imagen.data.order import hash_key
from imagen.errors import CheckpointError, ConfigError
from imagen.network.config import UNetConfig
from imagen.network.unet import UNet
from imagen.network.unet import build as build_network
from train import rundir
from train.config import TrainStageConfig
from train.job import Job

_INIT = 64
"""Purpose of the seed of the initial weights, beside those of imagen.data.randomness."""
_FREE = ("dropout",)
"""Keys of a network that its weights do not depend on."""


def random(config: UNetConfig, seed: int) -> UNet:
    """Return a new network; the same weights on every rank and machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash_key(seed, _INIT)) >> 1)
        return build_network(config)


def build(job: Job) -> UNet:
    """Return the network of a job as its run starts, on the CPU.

    Raises CheckpointError when the snapshot that it starts from is damaged.
    """
    net = random(job.config.members[job.member].network, job.config.seed)
    if job.train.init_from:
        folder = rundir.snapshot_in(job.train.init_from, job.member)
        net.load_state_dict(snapshot.load(folder).state_dict)
    return net


def settled(config: TrainStageConfig, member: str) -> TrainStageConfig:
    """Return a config in which `init_from` of a run that is to start names one snapshot.

    What a run directory stands for may change while the workers of a run come and go. Of a run
    that is under way nothing is changed: its weights are in its checkpoints.
    """
    train = config.of(member)
    if not train.init_from or rundir.newest_identity(config.run_dir(member)) is not None:
        return config
    folder = rundir.snapshot_in(train.init_from, member)
    if storage.is_local(folder):
        folder = os.path.abspath(storage.local(folder))
    section = dataclasses.replace(train, init_from=folder)
    return dataclasses.replace(config, train={**config.train, member: section})


def check(config: TrainStageConfig, member: str) -> None:
    """Raise unless `init_from` is a complete snapshot of the member's architecture.

    Of a run that is under way nothing is asked: its weights are in its checkpoints. Raises
    CheckpointError, ConfigError.
    """
    path = config.of(member).init_from
    if not path or rundir.newest_identity(config.run_dir(member)) is not None:
        return
    folder = rundir.snapshot_in(path, member)
    where = storage.join(folder, snapshot.MANIFEST)
    body = manifest.read(where, snapshot.KIND, CheckpointError)
    if manifest.read_if_complete(where, snapshot.KIND) is None:
        raise CheckpointError(
            f"train.{member}.init_from: a data file of the snapshot `{folder}` is missing or has "
            "another size than its manifest says",
            "copy the whole folder again, or choose another snapshot",
        )
    theirs = configs.build(UNetConfig, body["config"]["network"], where=where)
    _check_architecture(folder, member, theirs, config.members[member].network)


def _check_architecture(folder: str, member: str, theirs: UNetConfig, ours: UNetConfig) -> None:
    trees = [configs.to_tree(network) for network in (theirs, ours)]
    for tree in trees:
        for key in _FREE:
            del tree[key]
    lines = rundir.differences(*trees)
    if lines:
        raise ConfigError(
            f"train.{member}.init_from: the snapshot `{folder}` is of another architecture than "
            f"members.{member}.network: {'; '.join(lines)}",
            f"set members.{member}.network as the snapshot has it, or choose another snapshot",
        )
