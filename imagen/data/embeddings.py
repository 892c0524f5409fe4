"""Embedding shards: the T5 output of every caption, real tokens only, memory-mapped.

Files of shard `00000` in `<root>/<encoder fingerprint>/`, the manifest last:

```
00000.tokens.npy   float16 (total_tokens, dim)   rows of all distinct captions, one after another
00000.offsets.npy  int64   (captions + 1,)       caption i is tokens[offsets[i]:offsets[i + 1]]
00000.slots.npy    int32   (rows,)               sample row -> its caption
00000.keys.npy     'S'     (rows,)               sample row -> its key
00000.json         manifest (kind "embeddings")
```

`encoder.json` (kind "encoder") says whose embeddings these are and lists `null.npy`, the embedding
of the empty caption; `manifest.json` (kind "embedding-set") says that all shards are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from imagen import config, manifest, storage
from imagen.data import arrays
from imagen.data.index import manifest_path
from imagen.data.prepared import OPEN_SHARDS, Prepared
from imagen.errors import ConfigError, ShardError
from imagen.text.config import TextConfig

_RUN = "run `python -m preencode CONFIG` with this config"


@dataclass(frozen=True, slots=True)
class EmbeddingShard:
    """The embeddings of one tar shard."""

    tokens: np.ndarray
    offsets: np.ndarray
    slots: np.ndarray
    keys: np.ndarray


def publish_shard(
    folder: str, name: str, shard: EmbeddingShard, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write one shard's files; return its manifest. `facts`: encoder, digest and counts.

    Raises ShardError, and writes nothing, when a value is not finite.
    """
    if not np.isfinite(shard.tokens).all():
        raise ShardError(
            f"shard {name}: the encoder returned values that are not finite (or exceed float16)",
            "use another text.dtype or encoder; nothing was written for this shard",
        )
    parts = ("tokens", "offsets", "slots", "keys")
    files = {f"{name}.{part}.npy": arrays.to_npy(getattr(shard, part)) for part in parts}
    body = {
        "shard": name,
        "rows": len(shard.slots),
        "captions": len(shard.offsets) - 1,
        "tokens": len(shard.tokens),
        "dim": int(shard.tokens.shape[1]),
        "dtype": "float16",
        **facts,
        "files": manifest.put_files(folder, files),
    }
    manifest.write(manifest_path(folder, name), "embeddings", body)
    return body


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


def publish_set(
    folder: str, fingerprint: str, data_fingerprint: str, shards: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Say that the embeddings of a data set are complete, from the manifests of its shards."""
    counts = ("rows", "captions", "tokens", "truncated", "lost_tokens", "empty")
    body = {
        "encoder": fingerprint,
        "data": data_fingerprint,
        **{key: sum(s[key] for s in shards) for key in counts},
        "shards": [{key: s[key] for key in ("shard", "rows", "digest")} for s in shards],
    }
    manifest.write(storage.join(folder, "manifest.json"), "embedding-set", body)
    return body


class EmbeddingSet:
    """The embeddings of a data set by one encoder, read by (shard, row)."""

    def __init__(
        self, folder: str, encoder: Mapping[str, Any], digests: Mapping[str, str], cache: str | None
    ) -> None:
        self.folder = folder
        self.cache = cache
        self.fingerprint: str = encoder["fingerprint"]
        self.dim: int = encoder["dim"]
        self.text = config.build(TextConfig, encoder["text"], storage.join(folder, "encoder.json"))
        self.digests = dict(digests)
        self.names = list(digests)
        null = storage.join(folder, "null.npy")
        self.null: np.ndarray = arrays.open_npy(null, encoder["files"]["null.npy"], cache)
        self._shard = lru_cache(OPEN_SHARDS)(self._open_shard)

    @classmethod
    def find(
        cls, root: str, text: TextConfig, prepared: Prepared | None, cache: str | None = None
    ) -> "EmbeddingSet":
        """Find the embeddings by the encoder `text` below `root`.

        With `prepared`, every shard must be there and be of the same captions; shard numbers are
        those of `prepared`. Raises ShardError that says what is there instead.
        """
        folder, encoder = _choose(root, text)
        path = storage.join(folder, "manifest.json")
        if not storage.exists(path):
            done = sum(n.endswith(".tokens.npy") for n in storage.listdir(folder))
            raise ShardError(f"embeddings in `{folder}` are unfinished: {done} shards so far", _RUN)
        shards = {s["shard"]: s for s in manifest.read(path, "embedding-set")["shards"]}
        if prepared is not None:
            _check_join(folder, shards, prepared)
        names = list(shards) if prepared is None else [s.name for s in prepared.shards]
        return cls(folder, encoder, {name: shards[name]["digest"] for name in names}, cache)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._shard = lru_cache(OPEN_SHARDS)(self._open_shard)

    def tokens(self, shard: int, row: int) -> np.ndarray:
        """Return the embedding of one sample's caption, (l, d) float16, a view of the file."""
        opened = self._shard(shard)
        slot = opened.slots[row]
        return opened.tokens[opened.offsets[slot] : opened.offsets[slot + 1]]

    def keys(self, shard: int) -> np.ndarray:
        """Return the keys of a shard by row, UTF-8 bytes."""
        return self._shard(shard).keys

    def _open_shard(self, shard: int) -> EmbeddingShard:
        name = self.names[shard]
        body = manifest.read(manifest_path(self.folder, name), "embeddings")
        if (body["encoder"], body["digest"]) != (self.fingerprint, self.digests[name]):
            raise ShardError(
                f"shard {name} in `{self.folder}` is of another encoder or of other captions than "
                "the manifest of the set says",
                _RUN,
            )

        def load(part: str) -> np.ndarray:
            file = f"{name}.{part}.npy"
            path, entry = storage.join(self.folder, file), body["files"][file]
            return arrays.open_npy(path, entry, self.cache, big=part == "tokens")

        return EmbeddingShard(*(load(part) for part in ("tokens", "offsets", "slots", "keys")))


def _choose(root: str, text: TextConfig) -> tuple[str, dict[str, Any]]:
    """Return the one folder below `root` whose embeddings are by `text`, and its encoder.json."""
    there = [(f, e) for f in storage.listdir(root) if (e := _encoder(storage.join(root, f)))]
    matching = [(f, e) for f, e in there if _text(e) == text]
    if not there:
        raise ShardError(f"no embeddings in `{root}`", _RUN)
    if not matching:
        found = "; ".join(f"{f}: {_describe(_text(e))}" for f, e in there)
        raise ShardError(
            f"`{root}` holds embeddings of another encoder: {found}; "
            f"the config wants {_describe(text)}",
            _RUN + ", or set text to what the embeddings were made with",
        )
    if len(matching) > 1:
        names = ", ".join(f for f, _ in matching)
        raise ShardError(
            f"`{root}` holds embeddings of {len(matching)} versions of {text.encoder}: {names}",
            "delete the folders of the versions that you do not want",
        )
    return storage.join(root, matching[0][0]), matching[0][1]


def _encoder(folder: str) -> dict[str, Any] | None:
    path = storage.join(folder, "encoder.json")
    return manifest.read(path, "encoder") if storage.exists(path) else None


def _text(encoder: Mapping[str, Any]) -> TextConfig | None:
    """Return whose embeddings these are; None when a newer version of this code made them."""
    try:
        return config.build(TextConfig, encoder["text"])  # fields that came later: their defaults
    except ConfigError:
        return None


def _describe(text: TextConfig | None) -> str:
    if text is None:
        return "an encoder that this version does not know"
    revision = f" at {text.revision}" if text.revision else ""
    about = f"max_tokens {text.max_tokens}, {text.dtype}, cleaning {text.cleaning}"
    return f"{text.encoder}{revision} ({about})"


def _check_join(folder: str, shards: Mapping[str, Any], prepared: Prepared) -> None:
    missing = [s.name for s in prepared.shards if s.name not in shards]
    if missing:
        raise ShardError(
            f"embeddings in `{folder}` lack {len(missing)} of {len(prepared.shards)} shards: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
            _RUN,
        )
    other = [s.name for s in prepared.shards if shards[s.name]["digest"] != s.digest]
    if other:
        raise ShardError(
            f"embeddings in `{folder}` are of other captions than the data set in shards "
            f"{', '.join(other[:5])}{' …' if len(other) > 5 else ''}",
            _RUN + ": it encodes the shards whose captions changed",
        )
