"""The index of a tar shard: where each usable sample is, which are held out, what was left out.

Files of shard `00000` in the index folder, the manifest last:

```
00000.index.npy         one ROW for each usable sample, in tar order
00000.keys.npy          their keys, UTF-8, fixed width ('S')
00000.quarantine.jsonl  the samples left out: key, reason, detail
00000.json              manifest (kind "index")
```
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imagen import manifest, storage
from imagen.data import arrays
from imagen.data.samples import Bad, Sample, examine, read_caption
from imagen.data.tars import Buffer, list_members
from imagen.errors import ShardError

VERSION = 3
"""Raise it when the files or what is left out change: shards of another version are done again."""

ROW = np.dtype(
    [
        ("image_offset", "<i8"),
        ("image_bytes", "<u4"),
        ("caption_offset", "<i8"),
        ("caption_bytes", "<u4"),
        ("caption_json", "?"),
        ("heldout", "?"),
    ]
)
"""One sample: byte ranges in the tar, is the caption in a `.json`, split."""

LARGEST_PX = 1024
"""Images are told apart by size up to this one, the largest a member is trained at."""


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What is inside one tar."""

    rows: np.ndarray
    keys: np.ndarray
    captions: list[str]
    bad: list[Bad]
    plain: bool
    tar_bytes: int
    images_crc32c: str
    """Of the bytes of all images in the order of rows."""
    sides: dict[str, int]
    """Shorter side in pixels, at most `LARGEST_PX`, to number of images."""

    @property
    def digest(self) -> str:
        """Digest of the (key, caption) rows."""
        return digest_rows(self.keys, self.captions)


def is_heldout(key: str, share: float) -> bool:
    """Tell whether a sample is kept from training: a pure function of its key."""
    hashed = hashlib.sha256(key.encode("utf8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:8], "big") < share * 2**64


def digest_rows(keys: Iterable[bytes], captions: Iterable[str]) -> str:
    """Return 32 hex digits for (key, caption) rows; re-packing a tar does not change them."""
    hashed = hashlib.sha256()
    for key, text in zip(keys, captions, strict=True):
        for part in (bytes(key), text.encode("utf8")):
            hashed.update(len(part).to_bytes(8, "little"))
            hashed.update(part)
    return hashed.hexdigest()[:32]


def index_tar(tar: Buffer, where: str, heldout: float) -> ShardIndex:
    """Index a tar, holding out the share `heldout`. Raises ShardError when the tar is damaged."""
    listing = list_members(tar, where)
    examined = examine(tar, listing.members)
    good = [s for s in examined if isinstance(s, Sample)]
    bad = [b for b in examined if isinstance(b, Bad)]
    if not good:
        reasons = ", ".join(f"{count} {reason}" for reason, count in _count(bad).items())
        raise ShardError(
            f"tar `{where}` holds no usable sample: {reasons or 'it is empty'}",
            "a sample is KEY.jpg (or .png, .webp) and KEY.txt; take the tar out of the folder",
        )
    images = (tar[s.image.offset : s.image.offset + s.image.size] for s in good)
    sides = Counter(min(s.width, s.height, LARGEST_PX) for s in good)
    return ShardIndex(
        rows=np.array([_row(s, heldout) for s in good], dtype=ROW),
        keys=np.array([s.key.encode("utf8", "surrogateescape") for s in good], dtype="S"),
        captions=[s.text for s in good],
        bad=bad,
        plain=listing.plain,
        tar_bytes=len(tar),
        images_crc32c=storage.crc32c_of(images),
        sides={str(side): sides[side] for side in sorted(sides)},
    )


def _count(bad: Iterable[Bad]) -> dict[str, int]:
    return dict(sorted(Counter(b.reason for b in bad).items()))


def _row(s: Sample, heldout: float) -> tuple:
    held = is_heldout(s.key, heldout)
    image, text = s.image, s.caption
    return image.offset, image.size, text.offset, text.size, s.caption_is_json, held


def manifest_path(folder: str, name: str) -> str:
    """Return where the manifest of shard `name` is, in an index or an embedding folder."""
    return storage.join(folder, f"{name}.json")


def publish(folder: str, name: str, index: ShardIndex, source: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files of one shard's index; return its manifest.

    `source` says what was indexed, and is compared to tell whether an index is still good.
    """
    storage.delete(manifest_path(folder, name))  # no manifest while what it lists is replaced
    lines = [json.dumps(asdict(b), ensure_ascii=True) + "\n" for b in index.bad]
    files = {
        f"{name}.index.npy": arrays.to_npy(index.rows),
        f"{name}.keys.npy": arrays.to_npy(index.keys),
        f"{name}.quarantine.jsonl": "".join(lines).encode("ascii"),
    }
    heldout = int(index.rows["heldout"].sum())
    body = {
        "shard": name,
        "version": VERSION,
        **source,
        "tar_bytes": index.tar_bytes,
        "rows": len(index.rows),
        "train": len(index.rows) - heldout,
        "heldout": heldout,
        "plain": index.plain,
        "digest": index.digest,
        "images_crc32c": index.images_crc32c,
        "sides": index.sides,
        "empty": sum(not text for text in index.captions),
        "bad": _count(index.bad),
        "files": manifest.put_files(folder, files),
    }
    manifest.write(manifest_path(folder, name), "index", body)
    return body


def load(folder: str, name: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return (rows, keys, manifest) of an indexed shard. Raises ShardError."""
    body = manifest.read(manifest_path(folder, name), "index")
    rows, keys = (
        arrays.open_npy(storage.join(folder, file), body["files"][file])
        for file in (f"{name}.index.npy", f"{name}.keys.npy")
    )
    return rows, keys, body


def captions(tar: Buffer, rows: np.ndarray) -> list[str]:
    """Return the caption of every row of an indexed tar."""
    return [
        read_caption(
            tar[row["caption_offset"] : row["caption_offset"] + row["caption_bytes"]],
            bool(row["caption_json"]),
        )
        for row in rows
    ]
