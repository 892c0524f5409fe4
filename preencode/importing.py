"""Bring a source in: from its images to WebDataset tar shards, manifest last."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imagen import manifest, storage
from imagen.config import to_tree
from imagen.data import digits, tars
from imagen.errors import ConfigError, ShardError
from preencode.config import PreencodeConfig, SourceConfig
from runtime import progress

Sample = tuple[str, dict[str, bytes]]


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome of an import."""

    folder: str
    samples: int
    shards: int
    size_bytes: int
    fresh: bool
    """Written just now; False: it was there already."""


def manifest_path(config: PreencodeConfig) -> str:
    """Return where the manifest of the import is."""
    return storage.join(config.tars, "manifest.json")


def settings(config: PreencodeConfig) -> dict[str, Any]:
    """Return what decides the bytes of an import."""
    return {"source": to_tree(_source(config)), "seed": config.seed}


def _source(config: PreencodeConfig) -> SourceConfig:
    if config.source is None or config.data.tars:
        raise ConfigError(
            f"data.tars is {config.data.tars!r}: the tars there are used in place, not imported",
            "leave data.tars out to import into <out>/data",
        )
    return config.source


def done(config: PreencodeConfig) -> Mapping[str, Any] | None:
    """Return the manifest of a complete import with these settings, else None."""
    body = manifest.read_if_complete(manifest_path(config), "source")
    wanted = settings(config)
    return body if body is not None and {k: body.get(k) for k in wanted} == wanted else None


def run(config: PreencodeConfig) -> Imported:
    """Import the source of `config` into `<out>/data`, or find that it is there."""
    shards, body = _source(config).shards, done(config)
    storage.sweep_temporary(config.tars)
    if body is not None:
        return _imported(config, body, fresh=False)
    _discard(config)
    samples = digit_samples(config.seed)
    files: dict[str, dict[str, Any]] = {}
    with progress.bar("import digits", len(samples), "samples") as bar:
        for i in range(shards):
            part = samples[i * len(samples) // shards : (i + 1) * len(samples) // shards]
            packed = tars.write_tar(_encode(part))
            files |= manifest.put_files(config.tars, {f"{i:05d}.tar": packed})
            bar.advance(len(part))
    body = {**settings(config), "samples": len(samples), "files": files}
    manifest.write(manifest_path(config), "source", body)
    return _imported(config, body, fresh=True)


def _imported(config: PreencodeConfig, body: Mapping[str, Any], *, fresh: bool) -> Imported:
    size = sum(f["bytes"] for f in body["files"].values())
    return Imported(config.tars, body["samples"], len(body["files"]), size, fresh)


def _discard(config: PreencodeConfig) -> None:
    """Take back an earlier import with other settings: its manifest, then what it lists."""
    path = manifest_path(config)
    if not storage.exists(path):
        return
    try:
        stale = list(manifest.read(path, "source")["files"])
    except ShardError:
        stale = []  # a damaged manifest lists nothing; tars of the same names are replaced
    storage.delete(path)
    for name in stale:
        storage.delete(storage.join(config.tars, name))


def digit_samples(seed: int) -> list[tuple[str, Any, str]]:
    """Return (key, image, caption) of all digits, shuffled and worded by `seed`."""
    samples = []
    for i, (image, digit) in enumerate(digits.images()):
        text = digits.caption(digit, _draw(seed, "phrasing", i) % len(digits.PHRASINGS))
        samples.append((f"digit{i:04d}", image, text))
    order = sorted(range(len(samples)), key=lambda i: _draw(seed, "order", i))
    return [samples[i] for i in order]


def _draw(seed: int, purpose: str, i: int) -> int:
    """Return 64 bits for sample `i`: SHA-256, so that no library can change an import."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {i}".encode()).digest()[:8], "big")


def _encode(samples: list[tuple[str, Any, str]]) -> Iterator[Sample]:
    for key, image, text in samples:
        out = io.BytesIO()
        image.save(out, "png")
        yield key, {"png": out.getvalue(), "txt": text.encode("utf8")}


def list_tars(config: PreencodeConfig) -> list[tars.Tar]:
    """Return the tar shards of a project: what its import lists, or what lies in `data.tars`.

    Raises ShardError when there are none, ConfigError when the import of these settings is not
    finished.
    """
    in_place = bool(config.data.tars)
    body = manifest.read_if_complete(manifest_path(config), "source") if in_place else done(config)
    if body is not None:
        # the checksum, so that the same import in another place is indexed to the same bytes
        return [
            tars.Tar(storage.join(config.tars, name), f"crc32c-{entry['crc32c']}")
            for name, entry in sorted(body["files"].items())
        ]
    if in_place:
        return tars.list_tars(config.tars)
    raise ConfigError(
        f"no finished import in `{config.tars}` of this source and seed",
        f"import first: `python -m preencode import {_source(config).name} CONFIG`, with the same "
        "overrides; or point data.tars at tars",
    )
