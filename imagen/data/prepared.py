"""A prepared data set: tar shards that have been indexed, read by (shard, row)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from imagen import manifest, storage
from imagen.data import index
from imagen.data.samples import read_caption
from imagen.data.tars import BLOCK, header_name, split_name
from imagen.errors import ShardError

Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard: its name (the tar's without `.tar`), where the tar is, how many samples."""

    name: str
    tar: str
    rows: int
    train: int
    heldout: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Shard:
    tar: str
    rows: np.ndarray
    keys: np.ndarray
    plain: bool
    splits: dict[str, np.ndarray]


def relative_tar(index_dir: str, tar: str) -> str:
    """Return a tar's path as the index stores it: `../…` beside the index, so both can move."""
    home = index_dir.rpartition("/")[0]
    return f"../{tar[len(home) + 1 :]}" if home and tar.startswith(home + "/") else tar


def resolve_tar(index_dir: str, stored: str) -> str:
    """Undo `relative_tar`."""
    home = index_dir.rpartition("/")[0]
    return storage.join(home, stored[3:]) if stored.startswith("../") else stored


def publish(index_dir: str, shards: Sequence[Mapping[str, Any]], heldout: float) -> dict[str, Any]:
    """Write the manifest of a data set, last of all, from the manifests of its shards."""
    body = {
        "fingerprint": manifest.fingerprint(
            {"shards": [[s["shard"], s["digest"]] for s in shards], "heldout": heldout}
        ),
        "heldout_share": heldout,
        **{key: sum(s[key] for s in shards) for key in ("rows", "train", "heldout", "empty")},
        "bad": index.total_bad(shards),
        "shards": [
            {
                "name": s["shard"],
                **{k: s[k] for k in ("tar", "rows", "train", "heldout", "digest")},
            }
            for s in shards
        ],
    }
    manifest.write(storage.join(index_dir, "manifest.json"), "dataset", body)
    return body


class Prepared:
    """The samples of an indexed data set. Arrays of a shard are opened when it is first used."""

    def __init__(self, index_dir: str, body: Mapping[str, Any], cache: str | None) -> None:
        self.index_dir = index_dir.rstrip("/")
        self.cache = cache
        self.fingerprint: str = body["fingerprint"]
        self.shards = [
            ShardInfo(**{**s, "tar": resolve_tar(self.index_dir, s["tar"])}) for s in body["shards"]
        ]
        self._open: dict[int, _Shard] = {}

    @classmethod
    def open(cls, index_dir: str, cache: str | None = None) -> "Prepared":
        """Open a finished index. Remote tars are copied into the local folder `cache` when given.

        Raises ShardError when the index is missing or unfinished.
        """
        path = storage.join(index_dir.rstrip("/"), "manifest.json")
        if not storage.exists(path):
            raise ShardError(
                f"no finished index in `{index_dir}`",
                "run `python -m preencode CONFIG`: it finishes what is missing",
            )
        return cls(index_dir, manifest.read(path, "dataset"), cache)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

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
        at = opened.rows[row]
        start, size = int(at["image_offset"]), int(at["image_bytes"])
        data = storage.get_range(opened.tar, start - BLOCK, size + BLOCK)
        if opened.plain:
            self._check_key(shard, row, data[:BLOCK])
        return data[BLOCK:]

    def caption(self, shard: int, row: int) -> str:
        """Return the caption of one sample, as it stands in the tar, outer white space removed."""
        opened = self._shard(shard)
        at = opened.rows[row]
        raw = storage.get_range(opened.tar, int(at["caption_offset"]), int(at["caption_bytes"]))
        return read_caption(raw, bool(at["caption_json"]))

    def _check_key(self, shard: int, row: int, header: bytes) -> None:
        """The header is read with the image, so a replaced tar shows at the first sample."""
        found = split_name(header_name(header))
        if found is None or found[0] != self.key(shard, row):
            raise ShardError(
                f"tar `{self.shards[shard].tar}` has changed since it was indexed: row {row} "
                f"is no longer `{self.key(shard, row)}`",
                f"delete `{index.manifest_path(self.index_dir, self.shards[shard].name)}` "
                "and run `python -m preencode CONFIG`",
            )

    def _shard(self, shard: int) -> _Shard:
        opened = self._open.get(shard)
        if opened is None:
            opened = self._open[shard] = self._open_shard(self.shards[shard])
        return opened

    def _open_shard(self, info: ShardInfo) -> _Shard:
        rows, keys, body = index.load(self.index_dir, info.name, self.cache)
        if body["digest"] != info.digest:
            raise ShardError(
                f"index of shard {info.name} in `{self.index_dir}` is of other captions than the "
                "data set's manifest says",
                "run `python -m preencode CONFIG` again",
            )
        tar = info.tar
        if self.cache is not None and not storage.is_local(tar):
            tar = storage.localize(tar, self.cache, body["tar_crc32c"])
        held = rows["heldout"]
        splits = {
            "train": np.flatnonzero(~held).astype(np.int32),
            "heldout": np.flatnonzero(held).astype(np.int32),
        }
        return _Shard(tar, rows, keys, body["plain"], splits)
