"""What the stage tells people: the plan of a dry run, and the summary of a run."""

from collections.abc import Iterator, Sequence

from imagen import storage
from imagen.data import index, tars
from imagen.errors import ConfigError, ImagenError
from imagen.project import absolute
from preencode import importing, shard
from preencode.config import PreencodeConfig
from preencode.driver import Result, make_job, work_left
from preencode.shard import Job, Shard

TOKENS_PER_WORD = 1.3
"""Of T5 on English captions; plus one for the end of each."""


def plan_lines(config: PreencodeConfig) -> Iterator[str]:
    """Describe the work left, touching nothing."""
    config = absolute(config)
    try:
        paths = importing.list_tars(config)
    except ImagenError as err:
        yield f"{err.message}: nothing to index yet ({err.hint})"
        return
    yield f"tar shards      {len(paths)} in {config.tars}"
    try:
        job = make_job(config, download=False)
    except ConfigError as err:
        yield f"encoder         {config.text.encoder}: not on this machine yet ({err.message})"
        return
    left = work_left(job, paths)
    encode = [s for s in left if s.needs_embeddings]
    yield f"encoder         {config.text.encoder}, fingerprint {job.fingerprint}"
    yield f"to index        {sum(s.needs_index for s in left)} shards"
    yield f"to encode       {len(encode)} shards"
    if encode:
        yield from _volume(config, job, encode)


def _volume(config: PreencodeConfig, job: Job, encode: Sequence[Shard]) -> Iterator[str]:
    """Estimate captions and bytes: exact counts where indexed, else from one shard read now."""
    manifests = [shard.index_manifest(job, s.tar) for s in encode]
    known = sum(m["rows"] for m in manifests if m is not None)
    path = encode[0].tar.path
    content = tars.open_tar(path)
    first = index.index_tar(content, path, job.heldout)
    unknown = sum(
        storage.size(s.tar.path) for s, m in zip(encode, manifests, strict=True) if m is None
    )
    captions = known + round(unknown * len(first.captions) / len(content))
    yield f"captions        {'' if not unknown else 'about '}{captions:,}"
    distinct = set(first.captions)
    tokens = sum(min(1 + TOKENS_PER_WORD * len(c.split()), job.text.max_tokens) for c in distinct)
    dim = config.text.dim or next(iter(config.members.values())).network.text_dim
    size = captions * tokens / len(first.captions) * dim * 2
    yield f"embeddings      about {human_bytes(size)} in {job.embedding_dir}"


def summary_lines(result: Result) -> Iterator[str]:
    """Describe what a run did, and what was left out and why."""
    indexed = sum(r.indexed for r in result.reports)
    encoded = sum(r.encoded for r in result.reports)
    if not result.reports and not result.failed:
        yield f"nothing to do: {result.shards} shards are indexed and encoded"
    else:
        yield (
            f"indexed {indexed} and encoded {encoded} of {result.shards} shards "
            f"in {result.seconds:.1f} s"
        )
    if result.lost_actors:
        yield f"{result.lost_actors} actors were lost and replaced"
    if result.data is not None:
        yield from _data_lines(result.data, result.largest_px)
    if result.embedded is not None:
        yield from _embedding_lines(result.embedded, result.job.embedding_dir)
    for tar, error in result.failed.items():
        yield f"FAILED {storage.name(tar)}: {error.message}"
        yield f"       {error.hint or 'run the same command again'}"
    if result.failed:
        yield f"{len(result.failed)} failed, the data set is incomplete; what is done stays"


def _data_lines(data: dict, largest_px: int) -> Iterator[str]:
    yield (
        f"samples         {data['rows']:,} ({data['train']:,} to train, "
        f"{data['heldout']:,} held out), data {data['fingerprint']}"
    )
    for reason, count in data["bad"].items():
        yield f"left out        {count:,} {reason} (see *.quarantine.jsonl in the index)"
    small = sum(count for side, count in data["sides"].items() if int(side) < largest_px)
    if small:
        yield (
            f"too small       {small:,} images are smaller than the largest member's {largest_px} "
            "px: training gives them no weight"
        )


def _embedding_lines(embedded: dict, folder: str) -> Iterator[str]:
    yield (
        f"captions        {embedded['captions']:,} distinct in their shard, "
        f"{embedded['tokens']:,} tokens, in {folder}"
    )
    if embedded["empty"]:
        yield f"empty           {embedded['empty']:,} captions, kept as the end of sequence alone"
    if embedded["truncated"]:
        share = embedded["truncated"] / embedded["rows"]
        note = "; consider a larger text.max_tokens" if share > 0.01 else ""
        yield (
            f"cut             {embedded['truncated']:,} captions ({share:.2%}), "
            f"{embedded['lost_tokens']:,} tokens lost{note}"
        )


def human_bytes(size: float) -> str:
    """Return a size with a decimal unit, for example `1.6 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
