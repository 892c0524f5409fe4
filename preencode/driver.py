"""The run of the stage: find the work left, give it to actors, then say that all is complete."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from imagen import manifest, storage
from imagen.data import embeddings, prepared
from imagen.data.tars import Tar, unfinished
from imagen.errors import ImagenError, StorageError
from imagen.project import absolute
from imagen.text.encoder import encoder_fingerprint
from preencode import importing, room, shard
from preencode.config import PreencodeConfig
from preencode.dispatch import Outcome, dispatch
from preencode.noting import note
from preencode.shard import Job, Shard
from preencode.totals import Totals
from runtime import log, progress, session, state

ENCODER = "encoder.json"
"""Name of the one piece of work that is no tar: to say whose embeddings these are."""
LOOKS = 32
"""Manifests on a store that are read at a time."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(slots=True)
class Result:
    """What a run did, and what it could not do."""

    job: Job
    largest_px: int
    """Shorter side of the largest member, 0 without members."""
    shards: int
    """Shards of the data set."""
    unfinished: tuple[str, ...] = ()
    """Names of tars that img2dataset has not finished, which are left out."""
    done: Totals = field(default_factory=Totals)
    """Added up over the shards that were worked on."""
    failed: dict[str, ImagenError] = field(default_factory=dict)
    """Tars that could not be used, each with its reason."""
    lost_actors: int = 0
    retried: int = 0
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
        batch_tokens=config.preencode.batch_tokens,
    )


def work_left(job: Job, tars: Sequence[Tar]) -> list[Shard]:
    """Return the shards that lack an index or embeddings."""
    listings = storage.sizes(job.index_dir), storage.sizes(job.embedding_dir)
    found = each(tars, lambda tar: shard.look(job, tar, listings), job.index_dir)
    return [s for s in found if s.needs_index or s.needs_embeddings]


def each(items: Sequence[A], look: Callable[[A], B], folder: str) -> Iterator[B]:
    """Yield `look(item)` in order; when `folder` is on a store many at a time, never all."""
    if storage.is_local(folder):
        yield from map(look, items)
        return
    with ThreadPoolExecutor(LOOKS) as pool:
        waiting = iter(items)
        while group := list(islice(waiting, 16 * LOOKS)):
            yield from pool.map(look, group)


def run(config: PreencodeConfig, address: str | None = None) -> Result:
    """Index and encode what is missing, on the Ray at `address` or a local one.

    A shard that fails is reported in the result and does not keep the others from being done.
    """
    start, config = time.perf_counter(), absolute(config)
    tars = importing.list_tars(config)
    job = make_job(config)
    largest = max((min(member.shape) for member in config.members.values()), default=0)
    result = Result(job, largest, len(tars), _unfinished(config))
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
            finish(result, tars)
        result.seconds = time.perf_counter() - start
        events.write(event="end", failed=len(result.failed), seconds=round(result.seconds, 3))
    return result


def _unfinished(config: PreencodeConfig) -> tuple[str, ...]:
    return tuple(unfinished(config.data.tars)) if config.data.tars else ()


def _retract(job: Job, left: Sequence[Shard]) -> None:
    """Take back "complete" before a shard is replaced: a tar that changed changes both."""
    if left:
        for folder in (job.embedding_dir, job.index_dir):
            storage.delete(storage.join(folder, "manifest.json"))


def log_path(config: PreencodeConfig) -> str:
    """Return where the events of this stage are logged."""
    return storage.join(config.out, "logs", "preencode.jsonl")


def _encoder_is_published(job: Job) -> bool:
    path = storage.join(job.embedding_dir, ENCODER)
    return manifest.read_if_complete(path, "encoder") is not None


def _work(
    config: PreencodeConfig, result: Result, left: Sequence[Shard], events: log.JsonLog
) -> None:
    import ray

    published = _encoder_is_published(result.job)
    items: list[Tar | str] = [*([] if published else [ENCODER]), *(s.tar for s in left)]

    def call(actor: Any, item: Tar | str, ahead: Tar | str | None) -> ray.ObjectRef:
        if isinstance(item, Tar):
            return actor.process.remote(item, ahead)
        return actor.publish_encoder.remote()

    there = room.Room(config.preencode)
    outcomes = dispatch(items, starter(config, result.job), call, there, passing)
    begun = time.perf_counter()
    with progress.bar("index + encode", len(left), "shards") as bar, closing(outcomes):
        for outcome in outcomes:
            final = _record(result, outcome, events)
            if final and outcome.item != ENCODER:
                bar.advance(1, result.done.rates(time.perf_counter() - begun))


def starter(config: PreencodeConfig, job: Job) -> Callable[[], Any]:
    """Return what starts an actor with the room that the config gives it."""
    from preencode.actor import EncodeActor

    options = {"num_cpus": 1, "num_gpus": config.preencode.gpus_per_actor}
    return lambda: EncodeActor.options(**options).remote(job)  # type: ignore[attr-defined]


def passing(value: tuple[Any, Any]) -> ImagenError | None:
    """Return the error of an actor's answer that may pass: disks fill and empty, networks fail."""
    return value[1] if isinstance(value[1], StorageError) else None


def _record(result: Result, outcome: Outcome[Tar | str], events: log.JsonLog) -> bool:
    """Note one outcome; tell whether it is the last of its item."""
    final, worker, report = note(result, outcome, events)
    if report is not None:  # encoder.json has nothing to tell
        result.done.add(report)
        whose = {"encoder": result.job.fingerprint, "device": result.job.device}
        events.write(event="shard", **worker._asdict(), **whose, **report.event())
    return final


def finish(result: Result, tars: Sequence[Tar]) -> None:
    """Write the two manifests that say "complete", from those of all shards."""
    job = result.job
    indexed, embedded = storage.sizes(job.index_dir), storage.sizes(job.embedding_dir)

    def one(tar: Tar) -> dict[str, Any]:
        return shard.index_manifest(job, tar, indexed) or _gone(tar)

    def two(tar: Tar) -> dict[str, Any]:
        return shard.embedding_manifest(job, tar.name, embedded) or _gone(tar)

    result.data = prepared.publish(job.index_dir, each(tars, one, job.index_dir), job.heldout)
    result.embedded = embeddings.publish_set(
        job.embedding_dir,
        job.fingerprint,
        result.data["fingerprint"],
        each(tars, two, job.embedding_dir),
    )


def _gone(tar: Tar) -> dict[str, Any]:
    raise ImagenError(
        f"the files of shard `{tar}` disappeared while others were worked on",
        "run the same command again",
    )
