"""The run of the stage: find the work left, give it to actors, then say that all is complete."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from imagen import manifest, storage
from imagen.data import embeddings, prepared
from imagen.data.tars import Tar
from imagen.errors import ConfigError, ImagenError
from imagen.project import absolute
from imagen.text.encoder import encoder_fingerprint
from preencode import importing, shard
from preencode.config import PreencodeConfig
from preencode.dispatch import Outcome, dispatch
from preencode.shard import Job, Shard, ShardReport
from runtime import log, progress, session, state

ENCODER = "encoder.json"
"""Name of the one piece of work that is no tar: to say whose embeddings these are."""


@dataclass(slots=True)
class Result:
    """What a run did, and what it could not do."""

    job: Job
    largest_px: int
    """Shorter side of the largest member."""
    shards: int
    """Shards of the data set."""
    reports: list[ShardReport] = field(default_factory=list)
    """Shards that were worked on."""
    failed: dict[str, ImagenError] = field(default_factory=dict)
    """Tars that could not be used, each with its reason."""
    lost_actors: int = 0
    seconds: float = 0.0
    data: dict | None = None
    """Manifest of the data set, once all shards are there."""
    embedded: dict | None = None
    """Manifest of the embeddings, once all shards are there."""


def make_job(config: PreencodeConfig, *, download: bool = True) -> Job:
    """Return what all shards have in common. Raises ConfigError when the encoder is not here."""
    fingerprint = encoder_fingerprint(config.text, download=download)
    folder = os.path.abspath(config.text.encoder)
    return Job(
        text=config.text,
        loaded=replace(config.text, encoder=folder) if os.path.isdir(folder) else config.text,
        fingerprint=fingerprint,
        index_dir=config.index,
        embedding_dir=storage.join(config.embeddings, fingerprint),
        heldout=config.data.heldout,
        device="cuda" if config.preencode.gpus_per_actor else "cpu",
    )


def work_left(job: Job, tars: Sequence[Tar]) -> list[Shard]:
    """Return the shards that lack an index or embeddings."""
    found = (shard.look(job, tar) for tar in tars)
    return [s for s in found if s.needs_index or s.needs_embeddings]


def run(config: PreencodeConfig, address: str | None = None) -> Result:
    """Index and encode what is missing, on the Ray at `address` or a local one.

    A shard that fails is reported in the result and does not keep the others from being done.
    """
    start, config = time.perf_counter(), absolute(config)
    tars = importing.list_tars(config)
    job = make_job(config)
    largest = max(min(member.shape) for member in config.members.values())
    result = Result(job, largest, shards=len(tars))
    with state.lock(job.index_dir), log.JsonLog(log_path(config)) as events:
        for folder in (job.index_dir, job.embedding_dir):
            storage.sweep_temporary(folder)
        left = work_left(job, tars)
        events.write(event="start", encoder=job.fingerprint, shards=len(tars), left=len(left))
        _retract(job, left)
        if left or not _encoder_is_published(job):
            with session.connect(address):
                _work(config, result, left, events)
        if not result.failed:
            _finish(result, tars)
        result.seconds = time.perf_counter() - start
        events.write(event="end", failed=len(result.failed), seconds=round(result.seconds, 3))
    return result


def _retract(job: Job, left: Sequence[Shard]) -> None:
    """Take back "complete" before a shard is replaced."""
    if any(s.needs_index for s in left):
        storage.delete(storage.join(job.index_dir, "manifest.json"))
    if any(s.needs_embeddings for s in left):
        storage.delete(storage.join(job.embedding_dir, "manifest.json"))


def log_path(config: PreencodeConfig) -> str:
    """Return where the events of this stage are logged."""
    return storage.join(config.out, "logs", "preencode.jsonl")


def _encoder_is_published(job: Job) -> bool:
    path = storage.join(job.embedding_dir, ENCODER)
    return manifest.read_if_complete(path, "encoder") is not None


def _work(
    config: PreencodeConfig, result: Result, left: Sequence[Shard], events: log.JsonLog
) -> None:
    import ray.actor

    from preencode.actor import EncodeActor

    gpus = config.preencode.gpus_per_actor
    fit = actors_that_fit(ray.nodes(), gpus)
    published = _encoder_is_published(result.job)
    items: list[Tar | str] = [*([] if published else [ENCODER]), *(s.tar for s in left)]

    def start() -> ray.actor.ActorHandle:
        options = {"num_cpus": 1, "num_gpus": gpus}
        return EncodeActor.options(**options).remote(result.job)  # type: ignore[attr-defined]

    def call(actor: ray.actor.ActorHandle, item: Tar | str) -> ray.ObjectRef:
        if isinstance(item, Tar):
            return actor.process.remote(item)
        return actor.publish_encoder.remote()

    outcomes = dispatch(items, start, call, min(len(items), config.preencode.actors or fit))
    with progress.bar("index + encode", len(left), "shards") as bar, closing(outcomes):
        for outcome in outcomes:
            _record(result, outcome, events)
            if outcome.lost is None and outcome.item != ENCODER:
                bar.advance(1, f"{sum(r.rows for r in result.reports):,} samples")


def actors_that_fit(nodes: Sequence[Mapping[str, Any]], gpus: float) -> int:
    """Return how many actors of one core and `gpus` GPUs the nodes of a cluster hold together.

    Raises ConfigError when there is no room for one: Ray would wait for a larger node for ever.
    """
    rooms = (node["Resources"] for node in nodes if node["Alive"])
    fit = sum(int(min(room.get("CPU", 0), _gpu_room(room.get("GPU", 0), gpus))) for room in rooms)
    if not fit:
        raise ConfigError(
            f"no node of the Ray cluster has 1 CPU and {gpus:g} GPUs, which an actor needs",
            "set preencode.gpus_per_actor to what a node has; 0 encodes on cores",
        )
    return fit


def _gpu_room(there: float, gpus: float) -> float:
    if not gpus:
        return math.inf
    return there // gpus if gpus >= 1 else there * int(1 / gpus + 1e-9)  # a share is of one GPU


def _record(result: Result, outcome: Outcome[Tar | str], events: log.JsonLog) -> None:
    """Note one outcome. Raises ConfigError of an actor at once: every shard would have it."""
    item = str(outcome.item)
    if outcome.lost is not None:
        result.lost_actors += 1
        events.write(event="actor_lost", tar=item, reason=outcome.lost)
        return
    pid, value = outcome.value if outcome.error is None else (0, outcome.error)
    if isinstance(value, ConfigError):
        raise value
    if isinstance(value, ImagenError):
        result.failed[item] = value
        events.write(event="failed", tar=item, reason=value.message)
        return
    if value is None:
        return  # encoder.json, of which there is nothing to tell
    result.reports.append(value)
    events.write(
        event="shard",
        shard=value.name,
        pid=pid,
        rows=value.rows,
        captions=value.captions,
        seconds=round(value.seconds, 3),
    )


def _finish(result: Result, tars: Sequence[Tar]) -> None:
    """Write the two manifests that say "complete", from those of all shards."""
    job = result.job
    indexed, embedded = [], []
    for tar in tars:
        one = shard.index_manifest(job, tar)
        two = shard.embedding_manifest(job, tar.name)
        if one is None or two is None:
            raise ImagenError(
                f"the files of shard `{tar}` disappeared while others were worked on",
                "run the same command again",
            )
        indexed.append(one)
        embedded.append(two)
    result.data = prepared.publish(job.index_dir, indexed, job.heldout)
    result.embedded = embeddings.publish_set(
        job.embedding_dir, job.fingerprint, result.data["fingerprint"], embedded
    )
