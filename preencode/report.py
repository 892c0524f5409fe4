"""What the stage tells people: what was done, what was left out and why."""

from collections.abc import Iterator

from imagen import storage
from preencode.driver import Result
from preencode.totals import Totals


def summary_lines(result: Result) -> Iterator[str]:
    """Describe what a run did, and what was left out and why."""
    done = result.done
    if not done.shards and not result.failed:
        yield f"nothing to do: {result.shards} shards are indexed and encoded"
    else:
        yield (
            f"indexed {done.indexed} and encoded {done.encoded} of {result.shards} shards "
            f"in {result.seconds:.1f} s"
        )
    if done.tokens:
        yield _speed_line(done, result.seconds)
    if result.lost_actors:
        yield f"{result.lost_actors} actors were lost and replaced"
    if result.retried:
        yield f"{result.retried} times reading or writing failed and was tried again"
    yield from _unfinished_lines(result)
    if result.data is not None:
        yield from _data_lines(result.data, result.largest_px)
    if result.embedded is not None:
        yield from _embedding_lines(result.embedded, result.job.embedding_dir)
    for tar, error in result.failed.items():
        yield f"FAILED {storage.name(tar)}: {error.message}"
        yield f"       {error.hint or 'run the same command again'}"
    if result.failed:
        yield f"{len(result.failed)} failed, the data set is incomplete; what is done stays"


def _speed_line(done: Totals, seconds: float) -> str:
    return (
        f"speed           {done.captions / seconds:,.0f} captions/s, "
        f"{done.tokens / seconds:,.0f} tokens/s over all; in the encoder "
        f"{done.tokens / done.encode_s:,.0f} tokens/s an actor, {done.utilization:.0%} of the rate "
        "of its matrix products"
    )


def _unfinished_lines(result: Result) -> Iterator[str]:
    if result.unfinished:
        names = ", ".join(result.unfinished[:5]) + (" …" if len(result.unfinished) > 5 else "")
        yield (
            f"not finished    {len(result.unfinished)} tars have no _stats.json of img2dataset and "
            f"are left out: {names}"
        )


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
        f"captions        {embedded['captions']:,} distinct in their shard of "
        f"{embedded['rows']:,}, {embedded['tokens']:,} tokens"
    )
    size = embedded["bytes"]
    yield f"embeddings      {human_bytes(size)}, {human_bytes(size / embedded['rows'])} a sample"
    yield f"                in {folder}"
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
