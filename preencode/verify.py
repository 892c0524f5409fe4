"""Check everything that the stage wrote against the tars, the encoder and itself.

Every file is read and its checksum compared; the captions of every tar are read again and joined;
some captions of each shard are encoded again, each alone, and compared with what is stored.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagen import manifest, storage
from imagen.data import embeddings, index, tars
from imagen.data.tars import Tar
from imagen.errors import ImagenError
from imagen.text.encoder import TextEncoder
from preencode.shard import Encoder, Job, embedding_manifest, index_manifest

TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Relative L2 error of one caption, by what the encoder computes in. Storing float16 costs 2e-4;
in bfloat16 a caption's neighbours in its batch alone were measured to change it by up to 1.4e-2.
"""


@dataclass(slots=True)
class Findings:
    """What was found in one shard."""

    name: str
    problems: list[str] = field(default_factory=list)
    bytes_read: int = 0
    rows: int = 0
    captions: int = 0
    tokens: int = 0
    compared: int = 0
    """Captions that were encoded again."""
    worst: float = 0.0
    """Largest relative L2 error among them."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Tokens of a caption to number of captions."""

    def add(self, other: "Findings") -> None:
        """Count another shard's findings in, its problems under its name."""
        self.problems += [f"{other.name}: {problem}" for problem in other.problems]
        for count in ("bytes_read", "rows", "captions", "tokens", "compared"):
            setattr(self, count, getattr(self, count) + getattr(other, count))
        self.worst = max(self.worst, other.worst)
        self.lengths.update(other.lengths)


def check_shard(job: Job, tar: Tar, captions: int, encoder: Encoder) -> Findings:
    """Check one shard and encode `captions` of its captions again. Raises StorageError."""
    found = Findings(tar.name)
    indexed = index_manifest(job, tar)
    if indexed is None:
        found.problems.append("it has no complete index of this tar")
        return found
    found.problems += _check_files(job.index_dir, indexed, found)
    found.problems += _check_captions(job, tar, indexed)
    body = embedding_manifest(job, tar.name)
    if body is None:
        found.problems.append("it has no complete embeddings by this encoder")
        return found
    found.problems += _check_files(job.embedding_dir, body, found)
    if body["digest"] != indexed["digest"]:
        found.problems.append("its embeddings are of other captions than its index")
    if not found.problems:
        found.problems += _check_arrays(job, body, indexed, found)
    if not found.problems:
        found.problems += _check_values(job, body, captions, encoder(), found)
    return found


def _check_files(folder: str, body: Mapping[str, Any], found: Findings) -> Iterator[str]:
    """Compare the checksum of every file of a manifest."""
    for name, entry in body["files"].items():
        path = storage.join(folder, name)
        if storage.is_local(path):  # perhaps larger than memory
            checksum = storage.crc32c_file(storage.local(path))
        else:
            checksum = storage.crc32c(storage.get(path))
        found.bytes_read += entry["bytes"]
        if checksum != entry["crc32c"]:
            yield f"`{path}` has checksum {checksum}, its manifest says {entry['crc32c']}"


def _check_captions(job: Job, tar: Tar, indexed: Mapping[str, Any]) -> Iterator[str]:
    """Read the captions where the index says that they are."""
    rows, keys, _ = index.load(job.index_dir, tar.name)
    content = tars.open_tar(tar.path)
    try:
        same = index.digest_rows(keys, index.captions(content, rows)) == indexed["digest"]
    except ValueError:
        same = False
    if not same:
        yield f"captions in `{tar.path}` are others than its index says"


def _check_arrays(
    job: Job, body: Mapping[str, Any], indexed: Mapping[str, Any], found: Findings
) -> Iterator[str]:
    """Check that counts agree, and that rows, captions and tokens refer to what is there."""
    tokens, offsets, ids, slots, keys = (
        embeddings.open_part(job.embedding_dir, body, part)
        for part in ("tokens", "offsets", "ids", "slots", "keys")
    )
    _, index_keys, _ = index.load(job.index_dir, found.name)
    found.rows, found.captions, found.tokens = len(slots), len(offsets) - 1, len(tokens)
    lengths = np.diff(offsets)
    found.lengths.update(lengths.tolist())
    if not (len(slots) == len(keys) == indexed["rows"] == body["rows"]):
        yield f"{len(slots)} slots and {len(keys)} keys for {indexed['rows']} samples"
    elif not np.array_equal(keys, index_keys):
        yield "its keys are others than those of its index"
    whole = offsets[-1] == len(tokens) == len(ids)
    if not whole or offsets[0] != 0 or (lengths < 1).any():
        yield "its offsets do not divide its tokens into captions"
    if len(slots) and (slots.min() < 0 or slots.max() >= found.captions):
        yield "a slot is of no caption"
    if body["tokens"] != len(tokens) or body["captions"] != found.captions:
        yield "its manifest counts other tokens or captions"


def _check_values(
    job: Job, body: Mapping[str, Any], captions: int, encoder: TextEncoder, found: Findings
) -> Iterator[str]:
    """Encode some captions again, each alone; which ones is decided by the shard's digest."""
    tokens, offsets, ids = (
        embeddings.open_part(job.embedding_dir, body, part) for part in ("tokens", "offsets", "ids")
    )
    drawn = random.Random(body["digest"]).sample(
        range(found.captions), min(captions, found.captions)
    )
    for caption in drawn:
        start, stop = int(offsets[caption]), int(offsets[caption + 1])
        wanted, _ = encoder.encode_ids([ids[start:stop].tolist()], np.float32)
        error = _relative(tokens[start:stop].astype(np.float32), wanted)
        found.compared, found.worst = found.compared + 1, max(found.worst, error)
        if not error <= TOLERANCE[job.text.dtype]:
            yield f"caption {caption} differs by {error:.2e} from what the encoder gives now"


def _relative(stored: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(stored - wanted) / np.linalg.norm(wanted))


def check_sets(job: Job, names: list[str]) -> Iterator[str]:
    """Check what is said of all shards together: encoder.json and the two set manifests."""
    for folder, kind, key in (
        (job.index_dir, "dataset", "name"),
        (job.embedding_dir, "embedding-set", "shard"),
    ):
        path = storage.join(folder, "manifest.json")
        try:
            listed = [s[key] for s in manifest.read(path, kind)["shards"]]
        except ImagenError as err:
            yield err.message
            continue
        if listed != names:
            yield f"`{path}` lists other shards than there are tars"
    path = storage.join(job.embedding_dir, "encoder.json")
    try:
        encoder = manifest.read(path, "encoder")
        for name, entry in encoder["files"].items():
            manifest.check_file(name, storage.get(storage.join(job.embedding_dir, name)), entry)
        if encoder["fingerprint"] != job.fingerprint:
            yield f"`{path}` is of encoder {encoder['fingerprint']}, not {job.fingerprint}"
    except ImagenError as err:
        yield err.message
