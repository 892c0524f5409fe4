"""What a run would do and cost, before it is started: work, bytes, requests and time."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imagen import storage
from imagen.data import index, tars
from imagen.errors import ConfigError, ImagenError, ShardError
from imagen.project import absolute
from imagen.text import hf, tokens
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder, load_tokenizer
from preencode import importing, shard
from preencode.config import PreencodeConfig
from preencode.driver import log_path, make_job, work_left
from preencode.report import human_bytes
from preencode.shard import Job, Shard
from runtime import log

SLOT_BYTES, KEY_BYTES, OFFSET_BYTES, ID_BYTES = 4, 16, 8, 4
"""Bytes beside the embeddings: for each sample, for each caption, for each token."""
READS, INDEX_WRITES, EMBEDDING_WRITES = 5, 4, 6
"""Requests of a shard on a store: its tar and what is looked up; files of the two formats."""
PAGE = 1000
"""Names in one answer of a store that lists."""
TRIED = 8
"""Tars that are tried until one is not damaged."""
MEASURED = 1000
"""Captions that are encoded for a measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """What is left to encode."""

    shards: int
    rows: float
    captions: float
    """Distinct in their shard."""
    tokens: float
    dim: int
    exact: bool
    """All is indexed already; else it is judged by the first shard that is not."""

    @property
    def beside_bytes(self) -> float:
        """Bytes that are stored beside the embeddings."""
        samples = self.rows * (SLOT_BYTES + KEY_BYTES)
        return samples + self.captions * OFFSET_BYTES + self.tokens * ID_BYTES

    @property
    def stored_bytes(self) -> float:
        """Bytes of all that is stored, with embeddings in float16."""
        return self.tokens * self.dim * 2 + self.beside_bytes


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one actor, and where the number is from."""

    tokens_per_s: float
    source: str


def plan_lines(config: PreencodeConfig, *, measure: bool = False) -> Iterator[str]:
    """Describe the work left, touching nothing. `measure`: try the encoder here for its speed."""
    config = absolute(config)
    try:
        paths = importing.list_tars(config)
    except ImagenError as err:
        yield f"{err.message}: nothing to index yet ({err.hint})"
        return
    yield f"tar shards      {len(paths):,} in {config.tars}"
    try:
        job = make_job(config, download=False)
    except ConfigError as err:
        yield f"encoder         {config.text.encoder}: not on this machine yet ({err.message})"
        return
    left = work_left(job, paths)
    certain = sum(s.needs_embeddings for s in left)
    changed = len(left) - certain
    yield f"encoder         {config.text.encoder}, fingerprint {job.fingerprint}"
    yield f"to index        {sum(s.needs_index for s in left):,} shards"
    more = f", and of {changed:,} more those whose captions changed" if changed else ""
    yield f"to encode       {certain:,} shards{more}"
    if left:
        first, captions = _sample(job, left)
        volume = estimate(config, job, left, first, captions)
        yield from _volume_lines(volume, job)
        yield from _request_lines(left, len(paths), job)
        yield from _time_lines(volume, config, _speed(config, job, captions, measure=measure))


def remaining(config: PreencodeConfig) -> tuple[Volume, Speed | None] | None:
    """Return what is left to encode and the speed that the log tells; None: nothing is left.

    Raises ImagenError when that cannot be known yet: no tars, or no encoder on this machine.
    """
    config = absolute(config)
    paths = importing.list_tars(config)
    job = make_job(config, download=False)
    left = work_left(job, paths)
    if not left:
        return None
    first, captions = _sample(job, left)
    volume = estimate(config, job, left, first, captions)
    return volume, _speed(config, job, captions, measure=False)


def _sample(job: Job, left: Sequence[Shard]) -> tuple[Shard, list[str]]:
    """Return the shard that the others are judged by, and its captions."""
    firsts = sorted(left[:TRIED], key=lambda s: not s.needs_index)
    for last, first in enumerate(firsts, start=1):
        path = first.tar.path
        try:
            return first, index.index_tar(tars.open_tar(path), path, job.heldout).captions
        except ShardError:  # the run reports it and goes on
            if last == len(firsts):
                raise
    raise AssertionError("there is work left")


def estimate(
    config: PreencodeConfig, job: Job, left: Sequence[Shard], first: Shard, captions: list[str]
) -> Volume:
    """Judge what is left by one shard's captions: rows by bytes where a tar is not indexed yet."""
    known = unknown = 0
    sizes = storage.sizes(config.tars)
    listing = storage.sizes(job.index_dir)
    for s in left:
        body = None if s.needs_index else shard.index_manifest(job, s.tar, listing)
        if body is None:
            unknown += sizes[storage.name(s.tar.path)]
        else:
            known += body["rows"]
    rows = known + unknown * len(captions) / sizes[storage.name(first.tar.path)]
    ids = tokens.tokenize(
        load_tokenizer(job.loaded, download=False), captions, job.text.max_tokens, job.text.cleaning
    ).ids
    distinct, _ = tokens.distinct(ids)
    return Volume(
        shards=len(left),
        rows=rows,
        captions=rows * len(distinct) / len(captions),
        tokens=rows * sum(map(len, distinct)) / len(captions),
        dim=_dim(job.loaded),
        exact=not unknown,
    )


def _dim(text: TextConfig) -> int:
    dim = text.dim or replace(text, encoder=hf.locate(text, download=False)).dim
    assert dim is not None, "make_job has found the encoder's files"
    return dim


def _volume_lines(volume: Volume, job: Job) -> Iterator[str]:
    about = "" if volume.exact else "about "
    yield (
        f"captions        {about}{volume.rows:,.0f}, of them about {volume.captions:,.0f} distinct "
        f"in their shard, {volume.tokens:,.0f} tokens"
    )
    beside = volume.beside_bytes
    half = volume.tokens * volume.dim * 2
    padded = volume.rows * job.text.max_tokens * volume.dim * 4
    yield (
        f"embeddings      about {human_bytes(half + beside)} as float16, which is what is stored "
        f"({human_bytes(2 * half + beside)} as float32; {human_bytes(padded)} with every caption "
        f"padded to {job.text.max_tokens} tokens of float32)"
    )
    yield f"                in {job.embedding_dir}"


def _request_lines(left: Sequence[Shard], shards: int, job: Job) -> Iterator[str]:
    if storage.is_local(job.embedding_dir):
        return
    writes = sum(s.needs_index * INDEX_WRITES + s.needs_embeddings * EMBEDDING_WRITES for s in left)
    lists = 3 * math.ceil(shards / PAGE)
    yield f"requests        {writes + lists:,} writes and lists, {len(left) * READS:,} reads"


def _speed(
    config: PreencodeConfig, job: Job, captions: list[str], *, measure: bool
) -> Speed | None:
    if measure:
        return _measured(job, captions)
    ours = {"event": "shard", "encoder": job.fingerprint, "device": job.device}
    events = log.read(log_path(config))
    shards = [e for e in events if e.get("encode_s") and {k: e.get(k) for k in ours} == ours]
    if not shards:
        return None
    seconds, count = sum(e["encode_s"] for e in shards), sum(e["tokens"] for e in shards)
    return Speed(count / seconds, f"of {len(shards):,} shards in the log")


def _measured(job: Job, captions: list[str]) -> Speed:
    """Encode some captions of a shard in this process, on one thread as an actor does."""
    import torch

    if job.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--measure tries the encoder on this machine, which has no GPU",
            "run it where the GPUs are, or with preencode.gpus_per_actor=0 for the speed of a core",
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _timed(job, captions)
    finally:
        torch.set_num_threads(threads)


def _timed(job: Job, captions: list[str]) -> Speed:
    loaded = load_encoder(job.loaded, job.device, job.batch_tokens)
    rows, _ = tokens.distinct(loaded.tokenize(captions[:MEASURED]).ids)
    loaded.encode_ids(rows[:1], np.float16)  # the first call pays for what is set up once
    start = time.perf_counter()
    flat, _ = loaded.encode_ids(rows, np.float16)
    seconds = time.perf_counter() - start
    return Speed(len(flat) / seconds, f"of {len(rows):,} captions, measured here now")


def _time_lines(volume: Volume, config: PreencodeConfig, speed: Speed | None) -> Iterator[str]:
    if speed is None:
        yield "time            not known: --measure tries the encoder on this machine"
        return
    hours = volume.tokens / speed.tokens_per_s / 3600
    gpus = config.preencode.gpus_per_actor
    what = f"{hours * gpus:,.2f} GPU-hours" if gpus else f"{hours:,.2f} core-hours"
    each = f"{hours / config.preencode.actors:,.2f} h" if config.preencode.actors else ""
    yield (
        f"time            {what} in the encoder, at {speed.tokens_per_s:,.0f} tokens/s an actor "
        f"({speed.source}){'; ' + each + ' with all actors' if each else ''}"
    )
