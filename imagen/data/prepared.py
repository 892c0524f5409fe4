"""A prepared data set: tar shards that have been indexed, read by (shard, row)."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from imagen import manifest, storage
from imagen.data import index
from imagen.data.open_shards import OpenFile, OpenShards
from imagen.data.samples import read_caption
from imagen.data.shard_cache import Remote, ShardCache
from imagen.data.tars import BLOCK, header_name, split_name
from imagen.errors import ShardError

Split = Literal["train", "heldout"]

_TWO_READS = 16 * 2**10
"""Above as many bytes a second read costs less than a second copy."""
_COUNTS = ("rows", "train", "heldout")
_OF_TAR = ("tar_bytes", "tar_version")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard: its name (the tar's without `.tar`), where the tar is, how many samples."""

    name: str
    tar: str
    rows: int
    train: int
    heldout: int
    digest: str
    """Of its (key, caption) rows: what its embeddings are of."""
    images_crc32c: str
    tar_bytes: int | None = None
    """Size and version of the tar that was indexed; None in manifests before they had it."""
    tar_version: str | None = None


@dataclass(frozen=True, slots=True)
class _Shard:
    read: Callable[[int, int], bytes]
    """Bytes of the tar: (start, size)."""
    file: OpenFile | None
    rows: np.ndarray
    keys: np.ndarray
    starts: np.ndarray
    """Where images start, and their bytes, by row."""
    sizes: np.ndarray
    plain: bool
    splits: dict[str, np.ndarray]
    is_copy: bool
    """The file is a copy of a remote tar."""

    def is_evicted(self) -> bool:
        return self.is_copy and self.file is not None and self.file.is_deleted()


def relative_tar(index_dir: str, tar: str) -> str:
    """Return a tar's path as the index stores it: `../…` beside the index, so both can move."""
    home = index_dir.rpartition("/")[0]
    return f"../{tar[len(home) + 1 :]}" if home and tar.startswith(home + "/") else tar


def resolve_tar(index_dir: str, stored: str) -> str:
    """Undo `relative_tar`."""
    home = index_dir.rpartition("/")[0]
    return storage.join(home, stored[3:]) if stored.startswith("../") else stored


def publish(index_dir: str, shards: Iterable[Mapping[str, Any]], heldout: float) -> dict[str, Any]:
    """Write the manifest of a data set, last of all, from the manifests of its shards."""
    total = dict.fromkeys((*_COUNTS, "empty"), 0)
    bad, sides = Counter[str](), Counter[str]()
    listed = []
    for shard in shards:
        for key in total:
            total[key] += shard[key]
        bad.update(shard["bad"])
        sides.update(shard["sides"])
        facts = ("tar", *_COUNTS, "digest", "images_crc32c")
        own = {key: shard[key] for key in facts} | {key: shard.get(key) for key in _OF_TAR}
        listed.append({"name": shard["shard"], **own})
    identity = [[s[k] for k in ("name", "digest", "images_crc32c")] for s in listed]
    body = {
        "version": index.VERSION,
        "fingerprint": manifest.fingerprint({"shards": identity, "heldout": heldout}),
        "heldout_share": heldout,
        **total,
        "bad": dict(sorted(bad.items())),
        "sides": dict(sorted(sides.items())),
        "shards": listed,
    }
    manifest.write(storage.join(index_dir, "manifest.json"), "dataset", body)
    return body


class Prepared:
    """The samples of an indexed data set. Arrays of a shard are opened when it is first used."""

    def __init__(self, index_dir: str, body: Mapping[str, Any], cache: ShardCache | None) -> None:
        self.index_dir = index_dir.rstrip("/")
        self.cache = cache
        self.fingerprint: str = body["fingerprint"]
        self.shards = [
            ShardInfo(**{**s, "tar": resolve_tar(self.index_dir, s["tar"])}) for s in body["shards"]
        ]
        self._shard = OpenShards(self._open_shard)

    @classmethod
    def open(cls, index_dir: str, cache: ShardCache | None = None) -> "Prepared":
        """Open a finished index. Remote tars are copied into `cache` when there is one.

        Raises ShardError when the index is missing, unfinished or of another version.
        """
        path = storage.join(index_dir.rstrip("/"), "manifest.json")
        if not storage.exists(path):
            raise ShardError(
                f"no finished index in `{index_dir}`",
                "run `python -m preencode CONFIG`: it finishes what is missing",
            )
        body = manifest.read(path, "dataset")
        if body.get("version") != index.VERSION:
            raise ShardError(
                f"the index in `{index_dir}` is of version {body.get('version', 1)}, this code "
                f"reads version {index.VERSION}",
                "run `python -m preencode CONFIG`: it indexes the tars again",
            )
        return cls(index_dir, body, cache)

    def keep_open(self, count: int) -> None:
        """Keep up to `count` shards open, if that is more than usual; close those evicted."""
        self._shard.keep(count)

    def rows(self, shard: int, split: Split) -> np.ndarray:
        """Return the rows of a split, ascending, int32."""
        return self._shard(shard).splits[split]

    def keys(self, shard: int) -> np.ndarray:
        """Return the keys of a shard by row, UTF-8 bytes."""
        return self._shard(shard).keys

    def key(self, shard: int, row: int) -> str:
        """Return the key of one sample."""
        return bytes(self.keys(shard)[row]).decode("utf8", "surrogateescape")

    def image(self, shard: int, row: int) -> bytes:
        """Return the encoded image of one sample. Raises ShardError when the tar has changed."""
        opened = self._shard(shard)
        start, size = int(opened.starts[row]), int(opened.sizes[row])
        if opened.file is not None and size > _TWO_READS:
            self._check_key(opened, shard, row, opened.file.read(start - BLOCK, BLOCK))
            return opened.file.read(start, size)
        data = opened.read(start - BLOCK, size + BLOCK)
        self._check_key(opened, shard, row, data[:BLOCK])
        return data[BLOCK:]

    def remote(self, shard: int) -> Remote | None:
        """Return the tar of a shard as a cache knows it, None when it is local."""
        info = self.shards[shard]
        if storage.is_local(info.tar):
            return None
        body = manifest.read(index.manifest_path(self.index_dir, info.name), "index")
        return _remote(info.tar, body)

    def caption(self, shard: int, row: int) -> str:
        """Return the caption of one sample, as it stands in the tar, outer white space removed."""
        opened = self._shard(shard)
        at = opened.rows[row]
        raw = opened.read(int(at["caption_offset"]), int(at["caption_bytes"]))
        return read_caption(raw, bool(at["caption_json"]))

    def _check_key(self, opened: _Shard, shard: int, row: int, header: bytes) -> None:
        """The header is read with the image, so a replaced tar shows at the first sample."""
        as_it_was = header.startswith(opened.keys[row] + b".") and not header[345]
        if as_it_was or not opened.plain:
            return
        found = split_name(header_name(header))
        if found is None or found[0] != self.key(shard, row):
            raise self._changed(
                self.shards[shard], f"row {row} is no longer `{self.key(shard, row)}`"
            )

    def _changed(self, info: ShardInfo, how: str) -> ShardError:
        return ShardError(
            f"tar `{info.tar}` has changed since it was indexed: {how}",
            f"delete `{index.manifest_path(self.index_dir, info.name)}` "
            "and run `python -m preencode CONFIG`",
        )

    def _open_shard(self, shard: int) -> _Shard:
        info = self.shards[shard]
        rows, keys, body = index.load(self.index_dir, info.name)
        if (body["digest"], body["images_crc32c"]) != (info.digest, info.images_crc32c):
            raise ShardError(
                f"index of shard {info.name} in `{self.index_dir}` is of other samples than the "
                "data set's manifest says",
                "run `python -m preencode CONFIG` again",
            )
        file = self._open_tar(info, body)
        found = storage.size(info.tar) if file is None else file.size()
        if found != body["tar_bytes"]:
            raise self._changed(info, f"it has {found} bytes, not {body['tar_bytes']}")
        held = rows["heldout"]
        splits = {
            "train": np.flatnonzero(~held).astype(np.int32),
            "heldout": np.flatnonzero(held).astype(np.int32),
        }
        read = partial(storage.get_range, info.tar) if file is None else file.read
        is_copy = not storage.is_local(info.tar)
        starts, sizes = (np.ascontiguousarray(rows[f"image_{of}"]) for of in ("offset", "bytes"))
        return _Shard(read, file, rows, keys, starts, sizes, body["plain"], splits, is_copy)

    def _open_tar(self, info: ShardInfo, body: Mapping[str, Any]) -> OpenFile | None:
        """Open a local tar, or the copy of a remote one; None when that is read piece by piece."""
        if storage.is_local(info.tar):
            return OpenFile(info.tar)
        if self.cache is None:
            return None
        return self.cache.use(_remote(info.tar, body), OpenFile)


def _remote(tar: str, body: Mapping[str, Any]) -> Remote:
    return Remote(tar, body["tar_bytes"], body["tar_crc32c"])
