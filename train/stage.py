"""The train stage: what is to do, what is done, and doing it."""

import time
import uuid
from typing import Any

import torch

from imagen import config as configs
from imagen import storage
from imagen.data.images import told
from imagen.errors import ConfigError, ImagenError, ShardError
from imagen.network.unet import build
from imagen.project import absolute
from runtime import session
from runtime.state import StageState, is_locked, lock
from train import rundir
from train.config import TrainStageConfig
from train.data import shares
from train.job import Inputs, Job

PROBE = 8
"""Samples that are read before machines are asked for."""


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


def check(config: TrainStageConfig, member: str) -> Inputs:
    """Return the inputs of a run that can start or go on. Raises ImagenError with the reason."""
    train, network = config.of(member), config.members[member].network
    inputs = Inputs.open(config, member)
    if inputs.embeddings is not None and network.text_dim != inputs.embeddings.dim:
        raise ConfigError(
            f"members.{member}.network.text_dim is {network.text_dim}, the embeddings in "
            f"`{inputs.embeddings.folder}` are {inputs.embeddings.dim} wide",
            f"set members.{member}.network.text_dim={inputs.embeddings.dim}",
        )
    _check_resume(config, member, inputs)
    _probe(inputs.samples(config, member).__getitems__(range(min(PROBE, train.global_batch))))
    return inputs


def _check_resume(config: TrainStageConfig, member: str, inputs: Inputs) -> None:
    run_dir, train = config.run_dir(member), config.of(member)
    found = rundir.newest_identity(run_dir)
    if found is None:
        return
    rundir.check_identity(run_dir, found, inputs.identity)
    seen = rundir.newest_images(run_dir)
    done = rundir.finished(run_dir)
    if seen > train.total:
        raise ConfigError(
            f"the run in `{run_dir}` has seen {seen:,} images, the config asks for {train.total:,}",
            "raise train.images, choose another `out`, or delete the run's folder",
        )
    if done is not None and seen == train.total:
        lines = rundir.differences(done["recipe"], rundir.recipe(config, member))
        if lines:
            raise ConfigError(
                f"the run in `{run_dir}` is finished, but was trained otherwise: "
                f"{'; '.join(lines)}",
                "raise train.images to go on with the new values, choose another `out`, "
                "or delete the run's folder to start over",
            )


def _probe(batch: Any) -> None:
    """Raise ShardError when not one of the first samples can be decoded."""
    if not float(batch.weight.sum()):
        key, reason = batch.bad[0]
        raise ShardError(
            f"none of the first {len(batch.bad)} training images can be used; `{key}`: {reason}",
            "check the images and the size of the last member",
        )


def parameters(config: TrainStageConfig, member: str) -> int:
    """Return the number of weights of a member's network."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config.members[member].network).parameters())


def describe(config: TrainStageConfig, member: str) -> str:
    """Return what training a member would do: sizes, batch arithmetic, work left."""
    train, inputs = config.of(member), check(config, member)
    order = inputs.order
    seen = rundir.newest_images(config.run_dir(member))
    lines = [
        f"run directory     {config.run_dir(member)}",
        f"network           {parameters(config, member):,} weights",
        f"pictures          {_pictures(config, member)}, {train.precision}",
        f"data              {order.samples:,} training samples in {len(order.shard_sizes)} shards, "
        f"fingerprint {inputs.identity['data fingerprint']}",
        f"embeddings        {_embeddings(inputs)}",
        f"an epoch          {order.steps_per_epoch:,} steps; "
        f"{order.samples - order.steps_per_epoch * train.global_batch} samples left out, "
        "others each time",
        f"the run           {train.steps:,} steps, {train.total:,} images, "
        f"{train.steps / order.steps_per_epoch:.1f} epochs",
        f"left to do        {train.total - seen:,} images",
        "batches           " + "\n                  ".join(_batches(config, member)),
    ]
    return "\n".join(lines)


def _embeddings(inputs: Inputs) -> str:
    if inputs.embeddings is None:
        return "none: the network takes no text"
    return f"{inputs.embeddings.folder}, {inputs.embeddings.dim} wide"


def _pictures(config: TrainStageConfig, member: str) -> str:
    """Return the size of the pictures, of the crops of them, and of what they are made from."""
    shape, lowres = config.members[member].shape, config.previous_shape(member)
    px = config.of(member).crop_px
    crops = f"crops of {px} px out of " if px else ""
    prepared = ", prepared" if config.data.prepare else ""
    return f"{crops}{told(*shape)} px{prepared}" + (f", from {told(*lowres)} px" if lowres else "")


def _batches(config: TrainStageConfig, member: str) -> list[str]:
    """Return one line for each world size from the fewest to the most workers."""
    train, lines = config.of(member), []
    fewest, most = train.workers
    for world in range(fewest, most + 1):
        ranks = [shares(train.global_batch, train.microbatch, r, world) for r in range(world)]
        images = sorted({sum(map(len, parts)) for parts in ranks})
        micro = sorted({len(part) for parts in ranks for part in parts})
        passes = sorted({len(parts) for parts in ranks})
        lines.append(
            f"{world} workers: {_either(images)} images each, in {_either(passes)} passes "
            f"of {_either(micro)}"
        )
    return lines


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))


def run(config: TrainStageConfig, member: str, address: str | None = None) -> bool:
    """Train a member to the end of its run; False when there was nothing to do."""
    config = absolute(config)
    inputs = check(config, member)
    run_dir = config.run_dir(member)
    done = rundir.finished(run_dir)
    if done is not None and done["images_seen"] == config.of(member).total:
        return False
    del inputs  # workers open their own
    rundir.check_writable(run_dir)
    with lock(run_dir):
        storage.put(storage.join(run_dir, rundir.CONFIG), configs.dump_yaml(config).encode())
        storage.delete(storage.join(run_dir, rundir.MANIFEST))  # not done any more, if it was
        launch = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        with session.connect(address):
            from train.elastic import fit  # imports Ray, after its settings

            fit(Job(config, member, launch))
    return True
