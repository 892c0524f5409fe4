"""The work on one tar shard, a pure function of the tar: index it and encode its captions.

Both passes read the tar once. What is already there and fits is kept, so a second run, or a retry
after a kill, does only what is missing, and a retry writes the same bytes. The work has two halves:
`read` needs disk, network and one core, `finish` needs the encoder, so that an actor can read the
next shard while it encodes this one.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen import manifest, storage
from imagen.data import embeddings, img2dataset, index, prepared, tars
from imagen.data.tars import Tar
from imagen.errors import ShardError
from imagen.text import tokens
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder

Listing = Mapping[str, int]
"""Sizes of the files in a folder by name."""
Encoder = Callable[[], TextEncoder]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all shards of a run have in common."""

    text: TextConfig
    """As the config says it, which is what the other stages look for."""
    loaded: TextConfig
    """The same with an absolute path, because an actor may run in another folder."""
    fingerprint: str
    """Of the encoder."""
    index_dir: str
    embedding_dir: str
    """`<root>/<encoder fingerprint>`."""
    heldout: float
    device: str = "cpu"
    batch_tokens: int | None = None
    """Real tokens of one forward pass; None: what suits the device."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar and what it still lacks."""

    tar: Tar
    needs_index: bool
    needs_embeddings: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What was done for one shard."""

    name: str
    indexed: bool
    encoded: bool
    rows: int
    captions: int = 0
    """Distinct captions that went through the encoder."""
    tokens: int = 0
    flops: int = 0
    """Floating-point operations that its tokens need."""
    encode_s: float = 0.0
    """Seconds in the encoder."""
    matmul_rate: float = 0.0
    """Floating-point operations a second of large matrix products where it was encoded."""
    seconds: float

    def event(self) -> dict[str, Any]:
        """Return what is logged of it."""
        return {
            "shard": self.name,
            "rows": self.rows,
            "captions": self.captions,
            "tokens": self.tokens,
            "encode_s": round(self.encode_s, 3),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Read:
    """A tar that was read: all that is known before its captions are encoded."""

    tar: Tar
    found: index.ShardIndex | None
    """Its index, when that was still to do."""
    source: Mapping[str, Any]
    """What the manifest of a new index says of the tar."""
    keys: np.ndarray
    digest: str
    rows: tokens.TokenRows | None
    """Token ids of its captions, when they are still to encode."""
    seconds: float


def look(job: Job, tar: Tar, listings: tuple[Listing, Listing] | None = None) -> Shard:
    """Find out what a shard still lacks, from manifests alone.

    `listings` of the index and the embedding folder save looking at each file.
    """
    index_files, embedding_files = listings or (None, None)
    indexed = index_manifest(job, tar, index_files)
    embedded = embedding_manifest(job, tar.name, embedding_files)
    fits = indexed is None or (embedded or {}).get("digest") == indexed["digest"]
    return Shard(tar, indexed is None, embedded is None or not fits)


def index_manifest(job: Job, tar: Tar, listing: Listing | None = None) -> dict[str, Any] | None:
    """Return the manifest of a shard's complete index of this very tar, else None."""
    path = index.manifest_path(job.index_dir, tar.name)
    body = manifest.read_if_complete(path, "index", listing)
    if body is None:
        return None
    wanted = {
        "version": index.VERSION,
        "tar": prepared.relative_tar(job.index_dir, tar.path),
        "tar_version": tar.version,
        "heldout_share": job.heldout,
    }
    return body if {key: body.get(key) for key in wanted} == wanted else None


def embedding_manifest(
    job: Job, name: str, listing: Listing | None = None
) -> dict[str, Any] | None:
    """Return the manifest of a shard's complete embeddings, else None."""
    path = index.manifest_path(job.embedding_dir, name)
    body = manifest.read_if_complete(path, "embeddings", listing)
    return body if body is not None and body["encoder"] == job.fingerprint else None


def process(job: Job, tar: Tar, encoder: Encoder) -> ShardReport:
    """Do what a shard lacks. Raises ShardError, StorageError; writes only complete shards."""
    return finish(job, read(job, tar, encoder), encoder)


def read(job: Job, tar: Tar, encoder: Encoder) -> Read:
    """Read a tar, index it if that is missing, tokenize its captions if they are to encode."""
    start = time.perf_counter()
    body = index_manifest(job, tar)
    content = tars.open_tar(tar.path)
    found, source = None, {}
    if body is None:
        found = index.index_tar(content, tar.path, job.heldout)
        img2dataset.check(tar.path, found)
        source = _source(job, tar, content)
        keys, captions, digest = found.keys, found.captions, found.digest
    else:
        keys, captions, digest = *_indexed(job, tar, content), body["digest"]
    embedded = embedding_manifest(job, tar.name)
    stale = embedded is None or embedded["digest"] != digest
    rows = encoder().tokenize(captions) if stale else None
    return Read(tar, found, source, keys, digest, rows, time.perf_counter() - start)


def finish(job: Job, read: Read, encoder: Encoder) -> ShardReport:
    """Publish the index of a tar that was read, then encode its captions and publish them."""
    start, name = time.perf_counter(), read.tar.name
    if read.found is not None:
        index.publish(job.index_dir, name, read.found, read.source)
    work = {} if read.rows is None else encode(job, read, read.rows, encoder())
    return ShardReport(
        name=name,
        indexed=read.found is not None,
        encoded=read.rows is not None,
        rows=len(read.keys),
        seconds=read.seconds + time.perf_counter() - start,
        **work,
    )


def _source(job: Job, tar: Tar, content: tars.Buffer) -> Mapping[str, Any]:
    return {
        "tar": prepared.relative_tar(job.index_dir, tar.path),
        "tar_version": tar.version,
        # a remote tar is in memory anyway; readers that cache it compare their copy
        "tar_crc32c": None if storage.is_local(tar.path) else storage.crc32c(bytes(content)),
        "heldout_share": job.heldout,
    }


def _indexed(job: Job, tar: Tar, content: tars.Buffer) -> tuple[np.ndarray, list[str]]:
    """Return keys and captions of a shard that is indexed already."""
    rows, keys, body = index.load(job.index_dir, tar.name)
    try:
        captions = index.captions(content, rows)
        unchanged = index.digest_rows(keys, captions) == body["digest"]
    except ValueError:  # no UTF-8, no JSON: something else stands there now
        unchanged, captions = False, []
    if not unchanged:
        raise ShardError(
            f"tar `{tar}` has changed since it was indexed",
            f"delete `{index.manifest_path(job.index_dir, tar.name)}` and run again",
        )
    return keys, captions


def encode(job: Job, read: Read, rows: tokens.TokenRows, encoder: TextEncoder) -> dict[str, Any]:
    """Encode the captions of one shard and publish them; return what the report says of it."""
    unique, slots = tokens.distinct(rows.ids)
    lengths = [len(row) for row in unique]
    layout = embeddings.Layout(
        ids=np.concatenate(unique).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        slots=slots,
        keys=read.keys,
    )
    seconds = 0.0

    def fill(out: np.ndarray) -> None:
        nonlocal seconds
        start = time.perf_counter()
        encoder.encode_into(unique, out)
        seconds = time.perf_counter() - start

    facts = {
        "encoder": job.fingerprint,
        "digest": read.digest,
        "truncated": rows.truncated,
        "lost_tokens": rows.lost_tokens,
        "empty": rows.empty,
    }
    embeddings.publish_shard(job.embedding_dir, read.tar.name, layout, encoder.dim, fill, facts)
    return {
        "captions": len(unique),
        "tokens": len(layout.ids),
        "flops": encoder.flops(lengths),
        "encode_s": seconds,
        "matmul_rate": encoder.matmul_rate(),
    }


def ensure_encoder(job: Job, encoder: TextEncoder) -> None:
    """Publish whose embeddings the folder holds, and the embedding of the empty caption."""
    path = storage.join(job.embedding_dir, "encoder.json")
    if manifest.read_if_complete(path, "encoder") is None:
        (null,) = encoder.encode([""])
        embeddings.publish_encoder(job.embedding_dir, job.text, job.fingerprint, null)
