"""What training a member would do and take, told before it is started: `--dry-run`."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence

import torch

from imagen import storage
from imagen.data.images import told
from imagen.data.order import rank_slice
from imagen.memory import estimate
from imagen.memory.usage import GB, Setting, Usage
from imagen.network.unet import build
from train import feed, flops, initial, prefetch
from train.checks import check, images_seen
from train.config import TrainConfig, TrainStageConfig
from train.data import shares
from train.grids import SEEDS
from train.job import Inputs

LOADER_S = 2.0
"""How long the loader is tried."""
FORWARD = 1 / 3
"""Of the operations of a training step: a backward pass takes twice those of the forward pass."""


def describe(config: TrainStageConfig, member: str, accept: Sequence[str] = ()) -> str:
    """Return what training a member would do: sizes, batch arithmetic, cost, work left.

    Raises ImagenError where the training would be refused. Touches nothing.
    """
    config = initial.settled(config, member)
    inputs = check(config, member, accept)
    lines = [
        *_what(config, member, inputs),
        *_work(config, member, inputs),
        *_memory(config, member),
        *_disk(config, member, inputs),
        *_loader(config, member, inputs),
        *_validation(config, member, inputs),
        "batches           " + "\n                  ".join(batches(config.of(member))),
    ]
    return "\n".join(lines)


def parameters(config: TrainStageConfig, member: str) -> int:
    """Return the number of weights of a member's network."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config.members[member].network).parameters())


def _what(config: TrainStageConfig, member: str, inputs: Inputs) -> Iterator[str]:
    train, order = config.of(member), inputs.order
    yield f"run directory     {config.run_dir(member)}"
    yield f"network           {parameters(config, member):,} weights"
    if train.init_from:
        yield f"weights from      {train.init_from}"
    yield f"pictures          {_pictures(config, member)}, {train.precision}"
    yield (
        f"data              {order.samples:,} training samples in {len(order.shard_sizes)} shards, "
        f"fingerprint {inputs.identity['data fingerprint']}"
    )
    yield f"embeddings        {_embeddings(inputs)}"


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


def _work(config: TrainStageConfig, member: str, inputs: Inputs) -> Iterator[str]:
    """Tell how long the run is, what is left of it, and the operations of that."""
    train, order = config.of(member), inputs.order
    left = train.total - images_seen(config, member)
    each = flops.training_flops(config.members[member], train.crop_px)
    yield (
        f"an epoch          {order.steps_per_epoch:,} steps; "
        f"{order.samples - order.steps_per_epoch * train.global_batch} samples left out, "
        "others each time"
    )
    yield (
        f"the run           {train.steps:,} steps, {train.total:,} images, "
        f"{train.steps / order.steps_per_epoch:.1f} epochs"
    )
    yield f"left to do        {left:,} images"
    yield f"operations        {_operations(each)} an image, {_operations(left * each)} left"


def _operations(count: float) -> str:
    """Return floating-point operations with a prefix that leaves few digits."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}FLOP"
        count /= 1000
    return f"{count:,.3g} EFLOP"


def _memory(config: TrainStageConfig, member: str) -> Iterator[str]:
    """Tell what a step takes on one worker, as on a GPU; what FSDP cuts is cut by its workers."""
    train = config.of(member)
    setting = Setting(
        images=train.microbatch,
        precision=train.precision,
        tokens=config.text.max_tokens,
        optimizer=train.optimizer,
        checkpoint_levels=train.checkpoint_levels,
        crop_px=train.crop_px,
    )
    usage = estimate.training(config.members[member], setting)
    usage = dataclasses.replace(usage, ema=usage.ema * (1 + len(train.ema_profiles)))
    kept = f"weights {_size(usage.weights)}, gradients {_size(usage.gradients)}, "
    kept += f"{train.optimizer} {_size(usage.optimizer)}, EMA {_size(usage.ema)}"
    passing = max(usage.casts + usage.activations, usage.update)
    yield (
        f"memory            {_either_size(train, usage, passing)} a worker: {kept}, "
        f"a microbatch of {train.microbatch} {_size(passing)}"
    )


def _either_size(train: TrainConfig, usage: Usage, passing: int) -> str:
    """Return what a worker needs, for the fewest and the most workers where that differs."""
    if train.parallel == "ddp":
        return _size(usage.fixed + passing)
    sizes = [f"{_size(usage.fixed // w + passing)} ({w})" for w in sorted(set(train.workers))]
    return f"{' to '.join(sizes)} and a block's weights"


def _disk(config: TrainStageConfig, member: str, inputs: Inputs) -> Iterator[str]:
    """Tell what checkpoints and snapshots take, and the copies of remote shards."""
    run_dir, disk = config.run_dir(member), kept(config, member)
    yield (
        f"disk              {disk.checkpoints} checkpoints of {_size(disk.checkpoint)}, "
        f"{disk.snapshots} snapshots of {_size(disk.snapshot)}"
        f"{_milestones(disk)}{_free(run_dir)}"
    )
    if prefetch.is_remote(inputs):
        room = config.of(member).cache_gb
        yield f"cache             up to {room:g} GB a machine in {inputs.cache.folder}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """What the run directory of a finished training holds."""

    checkpoint: int
    """Bytes of one."""
    checkpoints: int
    """How many are kept at most, milestones aside."""
    snapshot: int
    """Bytes of one."""
    snapshots: int
    """How many are kept at most, milestones aside."""
    milestones: int
    """Checkpoints and snapshots that are kept for ever, of each."""

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        forever = self.milestones * (self.checkpoint + self.snapshot)
        return self.checkpoints * self.checkpoint + self.snapshots * self.snapshot + forever


def kept(config: TrainStageConfig, member: str) -> Disk:
    """Return what the training of a member leaves on the disk or store."""
    train = config.of(member)
    fixed = estimate.training_fixed(config.members[member], train.optimizer)
    profiles = len(train.ema_profiles)
    count = -(-train.total // train.snapshot_every) + bool(train.validate or train.grid)
    return Disk(
        checkpoint=fixed.weights * (2 + profiles) + fixed.optimizer,
        checkpoints=train.keep_checkpoints,
        snapshot=fixed.weights * (1 + profiles + (train.validate > 0)),
        snapshots=min(count, train.keep_snapshots + 1) if train.keep_snapshots else count,
        milestones=train.total // train.milestone_every if train.milestone_every else 0,
    )


def _milestones(disk: Disk) -> str:
    return f", and {disk.milestones} of each for ever" if disk.milestones else ""


def _free(run_dir: str) -> str:
    if not storage.is_local(run_dir):
        return ""
    place = storage.local(run_dir)
    while not os.path.exists(place):
        place = os.path.dirname(place) or "."
    return f"; {_size(shutil.disk_usage(place).free)} are free"


def _size(num_bytes: float) -> str:
    """Return gigabytes, or megabytes below one of them."""
    return f"{num_bytes / GB:,.2f} GB" if num_bytes >= GB else f"{num_bytes / 10**6:,.1f} MB"


def _loader(config: TrainStageConfig, member: str, inputs: Inputs) -> Iterator[str]:
    if prefetch.is_remote(inputs):
        yield "loader alone      not measured: the data is remote, this would be its download"
        return
    workers = config.of(member).loader_workers
    where = f"a worker will have {workers}" if workers else "a worker loads by itself"
    rate = feed.rate(config, member, LOADER_S)
    yield f"loader alone      {rate:,.0f} images/s, by one process of this machine; {where}"


def _validation(config: TrainStageConfig, member: str, inputs: Inputs) -> Iterator[str]:
    """Tell what validation looks at, what it costs, and what of it is left of earlier runs."""
    train = config.of(member)
    heldout = sum(shard.heldout for shard in inputs.prepared.shards)
    if not (train.validate or train.grid) or not heldout:
        yield f"validation        none: {heldout} held-out samples, validate {train.validate}"
        return
    samples, drawn = min(train.validate, heldout), min(train.grid, heldout)
    needed = _validating(config, member, samples, drawn)
    share = needed / train.snapshot_every
    seconds = needed * flops.training_flops(config.members[member], train.crop_px) / core_peak()
    yield (
        f"validation        of each snapshot on {samples:,} of {heldout:,} held-out samples, with "
        f"pictures of {drawn}: {share:.1%} of the operations between two snapshots, beside the "
        f"training, on one core ({_hours(seconds)} or more on one like this machine's) or on nodes "
        "with the resource imagen_validation"
    )


def core_peak() -> float:
    """Return the operations a second of one core of this machine: a validation has no more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return flops.peak(torch.device("cpu"), "fp32")
    finally:
        torch.set_num_threads(threads)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _validating(config: TrainStageConfig, member: str, samples: int, drawn: int) -> float:
    """Return the operations of a validation, in training steps of one image."""
    train, whole = config.of(member), config.members[member]
    text = 2 if whole.network.text_dim else 1
    trained = flops.training_flops(whole, train.crop_px)
    losses = 2 * text * samples * trained * FORWARD
    guided = text if whole.sampling.guidance_scale not in (0, 1) else 1
    pictures = drawn * (len(SEEDS) if config.previous_shape(member) is None else 1)
    sampled = pictures * whole.sampling.steps * guided * flops.training_flops(whole) * FORWARD
    return (losses + sampled) / trained


def batches(train: TrainConfig) -> list[str]:
    """Return what every number of workers does with a batch; one line for those that do the same.

    From the fewest to the most workers.
    """
    fewest, most = train.workers
    lines = []
    for text, same in itertools.groupby(range(fewest, most + 1), lambda n: _batch(train, n)):
        worlds = [*same]
        numbers = f"{worlds[0]}-{worlds[-1]}" if len(worlds) > 1 else f"{worlds[0]}"
        lines.append(f"{numbers} workers: {text}")
    return lines


def _batch(train: TrainConfig, world: int) -> str:
    by_size = {len(range(*rank_slice(train.global_batch, r, world))): r for r in range(world)}
    ranks = [shares(train.global_batch, train.microbatch, r, world) for r in by_size.values()]
    micro = sorted({len(part) for parts in ranks for part in parts if part})
    passes = sorted({len(parts) for parts in ranks})
    return (
        f"{_either(sorted(by_size))} images each, in {_either(passes)} passes of {_either(micro)}"
    )


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))
