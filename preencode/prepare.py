"""The run of `prepare`: the images of a data set at the size of each member, tar by tar."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from imagen import manifest, storage
from imagen.data import prepared, resize
from imagen.data.prepared import Prepared, ShardInfo
from imagen.errors import ConfigError, ImagenError, ShardError
from imagen.project import ProjectConfig, absolute
from preencode import prepare_shard, room
from preencode.config import PreencodeConfig
from preencode.dispatch import Outcome, dispatch
from preencode.driver import each, passing
from preencode.noting import note
from preencode.prepare_shard import Job, Member, ShardReport, Todo
from runtime import log, progress, session, state
from runtime.state import StageState, Status

SHOWN = 5
"""Unreadable images that a summary names."""


@dataclass(slots=True)
class Result:
    """What a run did, and what it could not do."""

    job: Job
    shards: int
    """Shards of the data set."""
    worked: int = 0
    """Shards that were worked on."""
    images: int = 0
    """Images that were brought to the size of a member, or left as they are."""
    unreadable: list[dict[str, str]] = field(default_factory=list)
    """The first ones of this run: key and reason."""
    failed: dict[str, ImagenError] = field(default_factory=dict)
    """Tars that could not be prepared, each with its reason."""
    lost_actors: int = 0
    retried: int = 0
    seconds: float = 0.0
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Member -> the manifest of its prepared images, once all shards are there."""

    def add(self, report: ShardReport) -> None:
        """Count what was done for one shard."""
        self.worked += 1
        self.images += report.images
        self.unreadable += report.unreadable[: SHOWN - len(self.unreadable)]


def check(config: PreencodeConfig) -> None:
    """Raise ConfigError when nobody would read what `prepare` makes."""
    if not config.data.prepare:
        raise ConfigError(
            "data.prepare is false: training reads the images where they are",
            "set data.prepare=true, here and in every later command",
        )
    if not config.members:
        raise ConfigError("the config has no `members`, whose sizes images are prepared at")


def make_job(config: ProjectConfig) -> tuple[Job, Prepared]:
    """Return what all shards have in common, and the source. Raises ShardError without an index."""
    source = Prepared.open(config.index)
    body = manifest.read(storage.join(config.index, "manifest.json"), "dataset")
    members = (Member(m, config.prepared_dir(m), config.target(m)) for m in config.members)
    job = Job(index_dir=config.index, heldout=body["heldout_share"], members=tuple(members))
    return job, source


def work_left(job: Job, shards: Sequence[ShardInfo]) -> list[Todo]:
    """Return the shards that members lack."""
    listings = {m.name: (storage.sizes(m.index), storage.sizes(m.data)) for m in job.members}

    def look(shard: ShardInfo) -> Todo:
        done = prepare_shard.done
        lacking = (m.name for m in job.members if not done(job, m, shard, listings[m.name]))
        return Todo(shard, tuple(lacking))

    return [todo for todo in each(shards, look, job.index_dir) if todo.members]


def log_path(config: PreencodeConfig) -> str:
    """Return where the events of this stage are logged."""
    return storage.join(config.out, "logs", "prepare.jsonl")


def run(config: PreencodeConfig, address: str | None = None) -> Result:
    """Prepare what is missing, on the Ray at `address` or a local one.

    A shard that fails is reported in the result and does not keep the others from being done.
    """
    start, config = time.perf_counter(), absolute(config)
    check(config)
    job, source = make_job(config)
    result = Result(job, len(source.shards))
    with state.lock(config.prepared), log.JsonLog(log_path(config)) as events:
        for member in job.members:
            for folder in (member.folder, member.data, member.index):
                storage.sweep_temporary(folder)
        left = work_left(job, source.shards)
        events.write(event="start", data=source.fingerprint, shards=result.shards, left=len(left))
        unfinished = unfinished_members(job, source, left)
        retract(unfinished)
        if left:
            with session.connect(address):
                _work(config, result, left, events)
        if not result.failed:
            finish(result, source, unfinished)
        result.seconds = time.perf_counter() - start
        events.write(event="end", failed=len(result.failed), seconds=round(result.seconds, 3))
    return result


def set_manifest(member: Member, source: Prepared) -> dict[str, Any] | None:
    """Return the manifest of a member's finished images of `source`, else None."""
    try:
        resize.open_set(member.folder, source, member.target)
        return manifest.read(storage.join(member.folder, resize.MANIFEST), resize.KIND)
    except ShardError:
        return None


def unfinished_members(job: Job, source: Prepared, left: Sequence[Todo]) -> list[Member]:
    """Return the members that lack shards, or the manifest that says that all are there."""
    lacking = {name for todo in left for name in todo.members}
    return [m for m in job.members if m.name in lacking or set_manifest(m, source) is None]


def retract(members: Sequence[Member]) -> None:
    """Take back "complete" before shards are replaced."""
    for member in members:
        storage.delete(storage.join(member.folder, resize.MANIFEST))
        storage.delete(storage.join(member.index, "manifest.json"))


def _work(
    config: PreencodeConfig, result: Result, left: Sequence[Todo], events: log.JsonLog
) -> None:
    import ray

    from preencode.prepare_actor import PrepareActor

    def start() -> Any:
        return PrepareActor.options(num_cpus=1).remote(result.job)  # type: ignore[attr-defined]

    def call(actor: Any, todo: Todo, _: Todo | None) -> ray.ObjectRef:
        return actor.process.remote(todo)

    there = room.Room(replace(config.preencode, gpus_per_actor=0))
    outcomes = dispatch(left, start, call, there, passing)
    total = sum(todo.shard.rows * len(todo.members) for todo in left)
    begun, images = time.perf_counter(), 0
    with progress.bar("prepare", total, "images") as bar, closing(outcomes):
        for outcome in outcomes:
            if _record(result, outcome, events):
                count = outcome.item.shard.rows * len(outcome.item.members)
                images += count
                bar.advance(count, f"{images / (time.perf_counter() - begun):,.0f} images/s")


def _record(result: Result, outcome: Outcome[Todo], events: log.JsonLog) -> bool:
    """Note one outcome; tell whether it is the last of its item."""
    final, worker, report = note(result, outcome, events)
    if report is not None:
        result.add(report)
        events.write(
            event="shard",
            shard=report.name,
            **worker._asdict(),
            members=list(outcome.item.members),
            images=report.images,
            unreadable=report.unreadable,
            seconds=round(report.seconds, 3),
        )
    return final


def finish(result: Result, source: Prepared, unfinished: Sequence[Member]) -> None:
    """Write the manifests that say "complete", from those of all shards. Raises ShardError."""
    if Prepared.open(source.index_dir).fingerprint != source.fingerprint:
        raise ShardError(
            f"the index in `{source.index_dir}` was made anew while its images were prepared",
            "run the same command again",
        )
    for member in unfinished:
        _sweep(member, {shard.name for shard in source.shards})
        _publish(result.job, member, source)
    for member in result.job.members:
        body = set_manifest(member, source)
        assert body is not None, f"the prepared images of {member.name} were just finished"
        result.bodies[member.name] = body


def _sweep(member: Member, names: set[str]) -> None:
    """Delete the shards of tars that the data set has no more: each manifest first."""
    for tar in storage.listdir(member.data):
        name = tar.removesuffix(".tar")
        if name not in names:
            for file in (f"{name}.json", *prepare_shard.index_files(name)):
                storage.delete(storage.join(member.index, file))
            storage.delete(storage.join(member.data, tar))


def _publish(job: Job, member: Member, source: Prepared) -> None:
    listings = storage.sizes(member.index), storage.sizes(member.data)
    size, kept = Counter[str](), Counter[str]()

    def one(shard: ShardInfo) -> dict[str, Any]:
        return prepare_shard.done(job, member, shard, listings) or _gone(shard)

    def counted() -> Iterator[dict[str, Any]]:
        for body in each(source.shards, one, job.index_dir):
            size.update(body["bytes"])
            kept.update(body["kept"])
            yield body

    data = prepared.publish(member.index, counted(), job.heldout)
    body = {
        **resize.identity(source.fingerprint, member.target),
        "data": data["fingerprint"],
        "rows": data["rows"],
        "kept": dict(sorted(kept.items())),
        "bytes": dict(size),
    }
    manifest.write(storage.join(member.folder, resize.MANIFEST), resize.KIND, body)


def _gone(shard: ShardInfo) -> dict[str, Any]:
    raise ImagenError(
        f"the files of shard `{shard.tar}` disappeared while others were worked on",
        "run the same command again",
    )


def prepare_state(config: PreencodeConfig) -> StageState:
    """Return how far `prepare` has come."""
    config = absolute(config)
    status, detail = _status(config)
    outputs = tuple(config.prepared_dir(member) for member in config.members)
    return StageState(stage="prepare", status=status, detail=detail, outputs=outputs)


def _status(config: PreencodeConfig) -> tuple[Status, str]:
    if (pid := state.is_locked(config.prepared)) is not None:
        return "running", f"process {pid}"
    try:
        check(config)
        job, source = make_job(config)
    except ImagenError as err:
        return "missing", err.message
    left = work_left(job, source.shards)
    unfinished = unfinished_members(job, source, left)
    if not unfinished:
        rows = sum(shard.rows for shard in source.shards)
        return "done", f"{rows:,} images for {', '.join(config.members)}"
    detail = f"{len(left)} of {len(source.shards)} shards left"
    if any(storage.exists(storage.join(m.folder, resize.MANIFEST)) for m in unfinished):
        return "stale", f"data set or members changed: {detail}"
    begun = any(storage.listdir(m.index) for m in unfinished)
    return ("partial" if begun else "missing"), detail
