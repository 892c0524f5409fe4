"""What a run leaves in storage, and how often it asks a bucket: what both cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from eval import sweeps
from imagen import storage
from imagen.errors import ImagenError
from pipeline.config import PipelineConfig
from pipeline.prices import Prices
from preencode import estimate, importing
from runtime.log import REMOTE_EVERY_S
from train import dryrun

GB = 10**9
CHECKPOINT_FILES, SNAPSHOT_FILES = 4, 3
"""Files of a checkpoint and of a snapshot that are written, manifests and clean-up included."""
SHARD_READS = 5
"""Requests by which training has a shard: the tar, its index, the files of its embeddings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """One kind of data that stays."""

    kind: str
    num_bytes: float | None
    """None: not known yet."""
    source: str
    """How that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """How often a bucket is asked, for what is left to do."""

    writes: float
    """Writes and lists: Class A."""
    reads: float
    """Reads and look-ups: Class B."""
    notes: tuple[str, ...]
    """What was counted, and what was not."""

    def usd(self, prices: Prices) -> float:
        """Return what they cost."""
        return (self.writes * prices.write_1000 + self.reads * prices.read_1000) / 1000


def kept(config: PipelineConfig) -> list[Kept]:
    """Return what the finished run holds, by kind. Touches nothing."""
    return [
        _there("tar shards", config.train.tars, "comes with the import"),
        _index(config),
        _embeddings(config),
        *_prepared(config),
        *_trainings(config),
        _evaluation(config),
        *_cascades(config),
    ]


def _there(kind: str, folder: str, otherwise: str) -> Kept:
    total = sum(storage.sizes(folder).values())
    if total:
        return Kept(kind=kind, num_bytes=total, source="there now")
    return Kept(kind=kind, num_bytes=None, source=f"not known: {otherwise}")


def _index(config: PipelineConfig) -> Kept:
    return _there("index", config.train.index, "small; comes with pre-encoding")


def _embeddings(config: PipelineConfig) -> Kept:
    folder = config.train.embeddings
    now = sum(
        sum(storage.sizes(storage.join(folder, name)).values()) for name in storage.listdir(folder)
    )
    try:
        found = estimate.remaining(config.preencode)
    except ImagenError as err:
        return Kept(kind="embeddings", num_bytes=now or None, source=f"not known: {err.message}")
    if found is None:
        return Kept(kind="embeddings", num_bytes=now, source="there now")
    more = found[0].stored_bytes
    told = "estimated from one shard's captions"
    return Kept(kind="embeddings", num_bytes=now + more, source=told)


def _prepared(config: PipelineConfig) -> Iterator[Kept]:
    if not config.train.data.prepare:
        return
    for name in config.train.members:
        folder = storage.join(config.train.prepared_dir(name), "data")
        yield _there(f"prepared {name}", folder, "comes with prepare")


def _trainings(config: PipelineConfig) -> Iterator[Kept]:
    for name in config.train.members:
        disk = dryrun.kept(config.train, name)
        told = (
            f"at most {disk.checkpoints} checkpoints of {size(disk.checkpoint)}, "
            f"{disk.snapshots} snapshots of {size(disk.snapshot)}"
        )
        if disk.milestones:
            told += f", {disk.milestones} of each for ever"
        yield Kept(kind=f"train {name}", num_bytes=disk.total, source=told)


def _evaluation(config: PipelineConfig) -> Kept:
    section = config.eval
    count = section.eval.count + len(sweeps.items(section)) * len(sweeps.points(section))
    pixels = sum(
        math.prod(member.shape) * member.network.channels for member in section.members.values()
    )
    told = f"one evaluation: {count:,} images of every member, not compressed"
    return Kept(kind="evaluation", num_bytes=count * pixels, source=told)


def _cascades(config: PipelineConfig) -> Iterator[Kept]:
    weights = sum(dryrun.parameters(config.train, name) * 4 for name in config.train.members)
    names = ["cascade", *(["published"] if config.eval.publish else [])]
    for name in names:
        yield Kept(kind=name, num_bytes=weights, source="weights of all members in float32")


def requests(config: PipelineConfig, left: Mapping[str, float], hours: float | None) -> Requests:
    """Return how often a bucket is asked for what is left. Touches nothing.

    `left`: member -> images to train on; `hours`: how long the trainings take, one after another.
    """
    shards = _shards(config)
    writes = reads = 0.0
    notes = []
    to_encode = shards if shards is not None and _encoding_left(config) else 0
    writes += to_encode * (estimate.INDEX_WRITES + estimate.EMBEDDING_WRITES)
    reads += to_encode * estimate.READS
    for name, images in left.items():
        train = config.train.of(name)
        writes += math.ceil(images / train.checkpoint_every) * CHECKPOINT_FILES * train.workers[1]
        writes += math.ceil(images / train.snapshot_every) * SNAPSHOT_FILES
        reads += (shards or 0) * SHARD_READS * train.workers[1] * bool(images)
    writes += (hours or 0) * 3600 / REMOTE_EVERY_S
    notes.append("each machine reads every shard once, as with a cache that holds the data set")
    if shards is None:
        notes.append("shards are not known yet: pre-encoding and reading them is not in it")
    if hours is None:
        notes.append("how long training takes is not known: its log is not in it")
    return Requests(writes=writes, reads=reads, notes=tuple(notes))


def _shards(config: PipelineConfig) -> int | None:
    try:
        return len(importing.list_tars(config.preencode))
    except ImagenError:
        return None


def _encoding_left(config: PipelineConfig) -> bool:
    return not storage.exists(storage.join(config.train.index, "manifest.json"))


def size(num_bytes: float | None) -> str:
    """Return a size with a decimal unit, `?` for None."""
    if num_bytes is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"
