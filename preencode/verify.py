"""Check everything that the stage wrote against the tars, the encoder and itself.

Every file is read and its checksum compared, images in their tars included. The captions of every
tar are read and tokenized again, and each sample's tokens compared with those that it is joined
with; some captions of each shard are encoded again, each alone, and compared with what is stored.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    texts = _captions(job, tar, indexed, found)
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
        found.problems += _check_join(job, body, texts, encoder())
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


def _captions(job: Job, tar: Tar, indexed: Mapping[str, Any], found: Findings) -> list[str]:
    """Return the captions where the index says that they are, and check them and the images."""
    rows, keys, _ = index.load(job.index_dir, tar.name)
    content = tars.open_tar(tar.path)
    try:
        texts = index.captions(content, rows)
        same = index.digest_rows(keys, texts) == indexed["digest"]
    except ValueError:
        texts, same = [], False
    if not same:
        found.problems.append(f"captions in `{tar.path}` are others than its index says")
    places = zip(rows["image_offset"].tolist(), rows["image_bytes"].tolist(), strict=True)
    images = storage.crc32c_of(content[start : start + size] for start, size in places)
    found.bytes_read += int(rows["image_bytes"].sum())
    if images != indexed["images_crc32c"]:
        found.problems.append(f"images in `{tar.path}` are others than its index says")
    return texts


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


def _check_join(
    job: Job, body: Mapping[str, Any], texts: list[str], encoder: TextEncoder
) -> Iterator[str]:
    """Compare the tokens of every sample's caption with those that the sample is joined with."""
    offsets, ids, slots = (
        embeddings.open_part(job.embedding_dir, body, part) for part in ("offsets", "ids", "slots")
    )
    wanted = encoder.tokenize(texts).ids
    wrong = [
        row
        for row, slot in enumerate(slots.tolist())
        if ids[offsets[slot] : offsets[slot + 1]].tolist() != wanted[row]
    ]
    if wrong:
        yield f"{len(wrong)} samples have the tokens of another caption, first in row {wrong[0]}"


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


def check_sets(job: Job, tars: Sequence[Tar]) -> Iterator[str]:
    """Check what is said of all shards together: the two set manifests and encoder.json."""
    data, yielded = None, []
    try:
        data = manifest.read(storage.join(job.index_dir, "manifest.json"), "dataset")
        facts = ("rows", "digest", "images_crc32c")
        yielded += _check_set(data, "name", facts, lambda tar: index_manifest(job, tar), tars)
        path = storage.join(job.embedding_dir, "manifest.json")
        embedded = manifest.read(path, "embedding-set")
        yielded += _check_set(
            embedded,
            "shard",
            ("rows", "digest"),
            lambda tar: embedding_manifest(job, tar.name),
            tars,
        )
        if embedded["data"] != data["fingerprint"]:
            yielded.append("the embeddings' manifest.json is of another data set than the index's")
    except ImagenError as err:
        yielded.append(err.message)
    yield from yielded


def _check_set(
    body: Mapping[str, Any],
    key: str,
    facts: Sequence[str],
    manifest_of: Callable[[Tar], Mapping[str, Any] | None],
    tars: Sequence[Tar],
) -> Iterator[str]:
    """Compare what a set manifest says of each shard with the shard's own."""
    kind = body["format"]
    if [s[key] for s in body["shards"]] != [tar.name for tar in tars]:
        yield f"the manifest.json of format {kind} lists other shards than there are tars"
        return
    for tar, listed in zip(tars, body["shards"], strict=True):
        own = manifest_of(tar)
        if own is not None and any(own[fact] != listed[fact] for fact in facts):
            yield f"{tar.name}: the manifest.json of format {kind} says other things than its own"


def check_encoder(job: Job, encoder: TextEncoder) -> Iterator[str]:
    """Check whose embeddings these are said to be, and the embedding of the empty caption."""
    path = storage.join(job.embedding_dir, "encoder.json")
    try:
        body = manifest.read(path, "encoder")
        null = embeddings.arrays.open_npy(
            storage.join(job.embedding_dir, "null.npy"), body["files"]["null.npy"]
        )
    except ImagenError as err:
        yield err.message
        return
    if body["fingerprint"] != job.fingerprint:
        yield f"`{path}` is of encoder {body['fingerprint']}, not {job.fingerprint}"
    (wanted,) = encoder.encode([""])
    if not _relative(null.astype(np.float32), wanted) <= TOLERANCE[job.text.dtype]:
        yield "`null.npy` is not what the encoder gives for the empty caption"
