"""Embedding shards: the T5 output of every caption, real tokens only, memory-mapped.

Files of shard `00000` in `<root>/<encoder fingerprint>/`, the manifest last:

```
00000.tokens.npy   float16 (total_tokens, dim)   rows of all distinct captions, one after another
00000.offsets.npy  int64   (captions + 1,)       caption i is tokens[offsets[i]:offsets[i + 1]]
00000.ids.npy      int32   (total_tokens,)       token ids of the rows of tokens
00000.slots.npy    int32   (rows,)               sample row -> its caption
00000.keys.npy     'S'     (rows,)               sample row -> its key
00000.json         manifest (kind "embeddings")
```

`encoder.json` (kind "encoder") says whose embeddings these are and lists `null.npy`, the embedding
of the empty caption; `manifest.json` (kind "embedding-set") says that all shards are there.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen import config, manifest, storage
from imagen.data import arrays, encoders
from imagen.data.index import manifest_path
from imagen.data.open_shards import OpenShards
from imagen.data.prepared import Prepared
from imagen.data.shard_cache import Remote, ShardCache
from imagen.errors import ShardError
from imagen.text.config import TextConfig

_CHECK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class EmbeddingShard:
    """The embeddings of one tar shard; `tokens` are memory-mapped."""

    tokens: np.ndarray
    offsets: np.ndarray
    slots: np.ndarray
    copy: str | None
    """Where the local copy of remote tokens is."""

    def is_evicted(self) -> bool:
        """Tell whether the local copy has been deleted."""
        return self.copy is not None and not os.path.exists(self.copy)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a shard before its captions are encoded: all but the values."""

    ids: np.ndarray
    offsets: np.ndarray
    slots: np.ndarray
    keys: np.ndarray

    def key_at(self, token: int) -> str:
        """Return the key of the first sample whose caption has a row of the token matrix."""
        caption = int(np.searchsorted(self.offsets, token, side="right")) - 1
        key = self.keys[np.flatnonzero(self.slots == caption)[0]]
        return bytes(key).decode("utf8", "backslashreplace")


def publish_shard(
    folder: str,
    name: str,
    layout: Layout,
    dim: int,
    fill: Callable[[np.ndarray], None],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write one shard's files; return its manifest. `facts`: encoder, digest and counts.

    `fill` writes the token matrix, (total_tokens, dim) float16, straight into the file's memory
    map. Raises ShardError, and publishes nothing, when a value is not finite; StorageError.
    """

    def checked(tokens: np.ndarray) -> None:
        fill(tokens)
        _check_finite(name, layout, tokens)

    storage.delete(manifest_path(folder, name))  # no manifest while what it lists is replaced
    file = f"{name}.tokens.npy"
    shape = (len(layout.ids), dim)
    tokens = arrays.write_npy(storage.join(folder, file), shape, np.float16, checked)
    parts = ("offsets", "ids", "slots", "keys")
    files = {f"{name}.{part}.npy": arrays.to_npy(getattr(layout, part)) for part in parts}
    body = {
        "shard": name,
        "rows": len(layout.slots),
        "captions": len(layout.offsets) - 1,
        "tokens": len(layout.ids),
        "dim": dim,
        "dtype": "float16",
        **facts,
        "files": {file: tokens, **manifest.put_files(folder, files)},
    }
    manifest.write(manifest_path(folder, name), "embeddings", body)
    return body


def _check_finite(name: str, layout: Layout, tokens: np.ndarray) -> None:
    """Raise ShardError that names the sample when a value is not finite; looks piece by piece."""
    rows = max(1, _CHECK_BYTES // max(1, tokens.shape[1] * tokens.itemsize))
    for start in range(0, len(tokens), rows):
        finite = np.isfinite(tokens[start : start + rows]).all(axis=1)
        if not finite.all():
            key = layout.key_at(start + int(np.argmin(finite)))
            raise ShardError(
                f"shard {name}: the encoder returned values that are not finite (or exceed "
                f"float16), first for the caption of `{key}`",
                "use another text.dtype or encoder; nothing was written for this shard",
            )


def publish_encoder(folder: str, text: TextConfig, fingerprint: str, null: np.ndarray) -> None:
    """Say whose embeddings `folder` holds; `null` (1, d) is the embedding of the empty caption."""
    files = manifest.put_files(folder, {"null.npy": arrays.to_npy(null.astype(np.float16))})
    body = {
        "fingerprint": fingerprint,
        "text": config.to_tree(text),
        "dim": int(null.shape[1]),
        "files": files,
    }
    manifest.write(storage.join(folder, "encoder.json"), "encoder", body)


COUNTS = ("rows", "captions", "tokens", "truncated", "lost_tokens", "empty")


def publish_set(
    folder: str, fingerprint: str, data_fingerprint: str, shards: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Say that the embeddings of a data set are complete, from the manifests of its shards."""
    total = dict.fromkeys((*COUNTS, "bytes"), 0)
    listed = []
    for shard in shards:
        for key in COUNTS:
            total[key] += shard[key]
        total["bytes"] += sum(file["bytes"] for file in shard["files"].values())
        listed.append({key: shard[key] for key in ("shard", "rows", "digest")})
    body = {"encoder": fingerprint, "data": data_fingerprint, **total, "shards": listed}
    manifest.write(storage.join(folder, "manifest.json"), "embedding-set", body)
    return body


class EmbeddingSet:
    """The embeddings of a data set by one encoder, read by (shard, row)."""

    def __init__(
        self,
        folder: str,
        encoder: Mapping[str, Any],
        digests: Mapping[str, str],
        cache: ShardCache | None,
    ) -> None:
        self.folder = folder
        self.cache = cache
        self.fingerprint: str = encoder["fingerprint"]
        self.dim: int = encoder["dim"]
        self.text = config.build(TextConfig, encoder["text"], storage.join(folder, "encoder.json"))
        self.digests = dict(digests)
        self.names = list(digests)
        null = storage.join(folder, "null.npy")
        self.null: np.ndarray = arrays.open_npy(null, encoder["files"]["null.npy"])
        self._shard = OpenShards(self._open_shard)

    @classmethod
    def find(
        cls,
        root: str,
        text: TextConfig,
        prepared: Prepared | None,
        cache: ShardCache | None = None,
    ) -> "EmbeddingSet":
        """Find the embeddings by the encoder `text` below `root`.

        With `prepared`, every shard must be there and be of the same captions; shard numbers are
        those of `prepared`. Raises ShardError that says what is there instead.
        """
        folder, encoder = encoders.choose(root, text)
        path = storage.join(folder, "manifest.json")
        if not storage.exists(path):
            done = sum(n.endswith(".tokens.npy") for n in storage.listdir(folder))
            raise ShardError(
                f"embeddings in `{folder}` are unfinished: {done} shards so far", encoders.RUN
            )
        shards = {s["shard"]: s for s in manifest.read(path, "embedding-set")["shards"]}
        if prepared is not None:
            _check_join(folder, shards, prepared)
        names = list(shards) if prepared is None else [s.name for s in prepared.shards]
        return cls(folder, encoder, {name: shards[name]["digest"] for name in names}, cache)

    def keep_open(self, count: int) -> None:
        """Keep up to `count` shards open, if that is more than usual; close those evicted."""
        self._shard.keep(count)

    def tokens(self, shard: int, row: int) -> np.ndarray:
        """Return the embedding of one sample's caption, (l, d) float16, a view of the file."""
        opened = self._shard(shard)
        slot = opened.slots[row]
        return opened.tokens[opened.offsets[slot] : opened.offsets[slot + 1]]

    def keys(self, shard: int) -> np.ndarray:
        """Return the keys of a shard by row, UTF-8 bytes."""
        return open_part(self.folder, self._manifest(shard), "keys")

    def remote(self, shard: int) -> Remote | None:
        """Return the token matrix of a shard as a cache knows it, None when it is local."""
        if storage.is_local(self.folder):
            return None
        return _remote(self.folder, self._manifest(shard))

    def _manifest(self, shard: int) -> dict[str, Any]:
        name = self.names[shard]
        body = manifest.read(manifest_path(self.folder, name), "embeddings")
        if (body["encoder"], body["digest"]) != (self.fingerprint, self.digests[name]):
            raise ShardError(
                f"shard {name} in `{self.folder}` is of another encoder or of other captions than "
                "the manifest of the set says",
                encoders.RUN,
            )
        return body

    def _open_shard(self, shard: int) -> EmbeddingShard:
        body = self._manifest(shard)
        tokens = open_part(self.folder, body, "tokens", self.cache)
        offsets, slots = (open_part(self.folder, body, part) for part in ("offsets", "slots"))
        copy = None
        if self.cache is not None and not storage.is_local(self.folder):
            copy = self.cache.path(_remote(self.folder, body))
        return EmbeddingShard(tokens, offsets, slots, copy)


def open_part(
    folder: str, body: Mapping[str, Any], part: str, cache: ShardCache | None = None
) -> np.ndarray:
    """Return one array of the shard whose manifest is `body`: tokens, offsets, ids, slots, keys."""
    file = f"{body['shard']}.{part}.npy"
    entry = body["files"][file]
    return arrays.open_npy(storage.join(folder, file), entry, cache, big=part == "tokens")


def _remote(folder: str, body: Mapping[str, Any]) -> Remote:
    file = f"{body['shard']}.tokens.npy"
    return arrays.remote(storage.join(folder, file), body["files"][file])


def _check_join(folder: str, shards: Mapping[str, Any], prepared: Prepared) -> None:
    missing = [s.name for s in prepared.shards if s.name not in shards]
    if missing:
        raise ShardError(
            f"embeddings in `{folder}` lack {len(missing)} of {len(prepared.shards)} shards: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
            encoders.RUN,
        )
    other = [s.name for s in prepared.shards if shards[s.name]["digest"] != s.digest]
    if other:
        raise ShardError(
            f"embeddings in `{folder}` are of other captions than the data set in shards "
            f"{', '.join(other[:5])}{' …' if len(other) > 5 else ''}",
            encoders.RUN + ": it encodes the shards whose captions changed",
        )
