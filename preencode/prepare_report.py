"""What `prepare` tells people: the plan of a dry run, and the summary of a run."""

from collections.abc import Iterator, Sequence

from imagen.data import resize
from imagen.data.images import told
from imagen.data.prepared import Prepared
from imagen.errors import ImagenError
from imagen.project import absolute
from preencode.config import PreencodeConfig
from preencode.prepare import Result, check, make_job, work_left
from preencode.prepare_shard import Member, Todo
from preencode.report import human_bytes

PROBE = 16
"""Images that a dry run prepares in memory, to know the size of all."""


def plan_lines(config: PreencodeConfig) -> Iterator[str]:
    """Describe the work left, touching nothing. Raises ConfigError."""
    config = absolute(config)
    check(config)
    try:
        job, source = make_job(config)
    except ImagenError as err:
        yield f"{err.message}: nothing to prepare yet ({err.hint})"
        return
    left = work_left(job, source.shards)
    yield f"tar shards      {len(source.shards)}, data {source.fingerprint}"
    for member in job.members:
        yield from _member_lines(member, source, left)


def _member_lines(member: Member, source: Prepared, left: Sequence[Todo]) -> Iterator[str]:
    todo = [one.shard for one in left if member.name in one.members]
    rows = sum(shard.rows for shard in todo)
    size = f"{told(*member.target.shape)} px"
    if not todo:
        yield f"{member.name:16}done, {size}, in {member.folder}"
        return
    number = [shard.name for shard in source.shards].index(todo[0].name)
    before, after = _probe(source, number, min(PROBE, todo[0].rows), member.target)
    yield (
        f"{member.name:16}{len(todo)} shards to prepare, {rows:,} images at {size}, about "
        f"{human_bytes(after * rows)} from {human_bytes(before * rows)}, in {member.folder}"
    )


def _probe(source: Prepared, shard: int, count: int, target: resize.Target) -> tuple[float, float]:
    """Return the mean bytes of the first images of a shard, and of what would be stored."""
    images = [source.image(shard, row) for row in range(count)]
    made = [resize.resize(image, target).data for image in images]
    return sum(map(len, images)) / count, sum(map(len, made)) / count


def summary_lines(result: Result) -> Iterator[str]:
    """Describe what a run did, and which images could not be brought to a size and why."""
    if not result.worked and not result.failed:
        yield f"nothing to do: {result.shards} shards are prepared"
    else:
        yield (
            f"prepared {result.images:,} images in {result.worked} of {result.shards} shards "
            f"in {result.seconds:.1f} s, {result.images / result.seconds:,.0f} images/s"
        )
    if result.lost_actors:
        yield f"{result.lost_actors} actors were lost and replaced"
    if result.retried:
        yield f"{result.retried} shards were tried again"
    for member in result.job.members:
        if member.name in result.bodies:
            yield from _set_lines(member, result.bodies[member.name])
    for bad in result.unreadable:
        yield f"unreadable      {bad['key']}: {bad['reason']}"
    for tar, error in result.failed.items():
        yield f"FAILED {tar}: {error.message}"
        yield f"       {error.hint or 'run the same command again'}"
    if result.failed:
        yield f"{len(result.failed)} failed, the images are incomplete; what is done stays"


def _set_lines(member: Member, body: dict) -> Iterator[str]:
    kept, size = body["kept"], body["bytes"]
    yield (
        f"{member.name:16}{body['rows']:,} images of {told(*member.target.shape)} px, "
        f"{human_bytes(size['prepared'])} from {human_bytes(size['source'])}, in "
        f"{member.folder}"
    )
    for reason, what in (
        ("no_larger", "stay as they are: their files are no larger than new ones"),
        ("too_small", "are too small and stay as they are: training gives them no weight"),
        ("unreadable", "cannot be decoded and stay as they are: training gives them no weight"),
    ):
        if kept.get(reason):
            yield f"{'':16}{kept[reason]:,} {what}"
