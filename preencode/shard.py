"""The work on one tar shard, a pure function of the tar: index it and encode its captions.

Both passes read the tar once. What is already there and fits is kept, so a second run, or a retry
after a kill, does only what is missing, and a retry writes the same bytes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen import manifest, storage
from imagen.data import embeddings, index, prepared, tars
from imagen.data.tars import Tar
from imagen.errors import ShardError
from imagen.text import tokens
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder


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
    captions: int
    """Distinct captions that went through the encoder."""
    seconds: float


def look(job: Job, tar: Tar) -> Shard:
    """Find out what a shard still lacks, from manifests alone."""
    indexed = index_manifest(job, tar)
    embedded = embedding_manifest(job, tar.name)
    fits = indexed is None or (embedded or {}).get("digest") == indexed["digest"]
    return Shard(tar, indexed is None, embedded is None or not fits)


def index_manifest(job: Job, tar: Tar) -> dict[str, Any] | None:
    """Return the manifest of a shard's complete index of this very tar, else None."""
    path = index.manifest_path(job.index_dir, tar.name)
    body = manifest.read_if_complete(path, "index")
    if body is None:
        return None
    wanted = {
        "version": index.VERSION,
        "tar": prepared.relative_tar(job.index_dir, tar.path),
        "tar_version": tar.version,
        "heldout_share": job.heldout,
    }
    return body if {key: body.get(key) for key in wanted} == wanted else None


def embedding_manifest(job: Job, name: str) -> dict[str, Any] | None:
    """Return the manifest of a shard's complete embeddings, else None."""
    path = index.manifest_path(job.embedding_dir, name)
    body = manifest.read_if_complete(path, "embeddings")
    return body if body is not None and body["encoder"] == job.fingerprint else None


def process(job: Job, tar: Tar, encoder: Callable[[], TextEncoder]) -> ShardReport:
    """Do what a shard lacks. Raises ShardError, StorageError; writes only complete shards."""
    start, name = time.perf_counter(), tar.name
    todo = look(job, tar)
    content = tars.open_tar(tar.path)
    if todo.needs_index:
        found = index.index_tar(content, tar.path, job.heldout)
        body = index.publish(job.index_dir, name, found, _source(job, tar, content))
        keys, captions = found.keys, found.captions
    else:
        keys, captions, body = _indexed(job, tar, content)
    embedded = embedding_manifest(job, name)
    stale = embedded is None or embedded["digest"] != body["digest"]
    if stale:
        embedded = encode(job, name, keys, captions, body["digest"], encoder())
    return ShardReport(
        name=name,
        indexed=todo.needs_index,
        encoded=stale,
        rows=body["rows"],
        captions=embedded["captions"] if stale and embedded else 0,
        seconds=time.perf_counter() - start,
    )


def _source(job: Job, tar: Tar, content: tars.Buffer) -> Mapping[str, Any]:
    return {
        "tar": prepared.relative_tar(job.index_dir, tar.path),
        "tar_version": tar.version,
        # a remote tar is in memory anyway; readers that cache it compare their copy
        "tar_crc32c": None if storage.is_local(tar.path) else storage.crc32c(bytes(content)),
        "heldout_share": job.heldout,
    }


def _indexed(
    job: Job, tar: Tar, content: tars.Buffer
) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Return keys, captions and manifest of a shard that is indexed already."""
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
    return keys, captions, body


def encode(
    job: Job, name: str, keys: np.ndarray, captions: list[str], digest: str, encoder: TextEncoder
) -> dict[str, Any]:
    """Encode the captions of one shard and publish them; return the manifest."""
    rows = encoder.tokenize(captions)
    unique, slots = tokens.distinct(rows.ids)
    flat, offsets = encoder.encode_ids(unique, np.float16)
    return embeddings.publish_shard(
        job.embedding_dir,
        name,
        embeddings.EmbeddingShard(flat, offsets, slots, keys),
        {
            "encoder": job.fingerprint,
            "digest": digest,
            "truncated": rows.truncated,
            "lost_tokens": rows.lost_tokens,
            "empty": rows.empty,
        },
    )


def ensure_encoder(job: Job, encoder: TextEncoder) -> None:
    """Publish whose embeddings the folder holds, and the embedding of the empty caption."""
    path = storage.join(job.embedding_dir, "encoder.json")
    if manifest.read_if_complete(path, "encoder") is None:
        (null,) = encoder.encode([""])
        embeddings.publish_encoder(job.embedding_dir, job.text, job.fingerprint, null)
