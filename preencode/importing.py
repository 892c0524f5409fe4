"""Bring a source in: from its images to WebDataset tar shards, manifest last.

```
<out>/data/00000.tar        samples: KEY.jpg (or .png, .webp), KEY.txt, for most sources KEY.json
<out>/data/00000.json       what the shard holds and what was left out; it is finished
<out>/data/failures.jsonl   all rows that were left out: row, where, reason, detail
<out>/data/manifest.json    the import is finished (kind "source")
<out>/data/begun.json       until then: the tars here are an import's
```
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from imagen import manifest, storage
from imagen.config import to_tree
from imagen.data import tars
from imagen.errors import ConfigError, ShardError
from preencode.config import PreencodeConfig
from preencode.sources import shards
from preencode.sources.config import SourceConfig, identity
from preencode.sources.opening import open_source
from preencode.sources.rows import Slice, Source
from runtime import progress

FAILURES = "failures.jsonl"


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome of an import."""

    folder: str
    samples: int
    shards: int
    size_bytes: int
    fresh: bool
    """Written just now; False: it was there already."""
    left_out: Mapping[str, int]
    """Rows that could not be used, by reason; they are listed in `failures.jsonl`."""
    ignored: Mapping[str, int]
    """Files that are no rows, by suffix."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import would do."""

    title: str
    rows: int | None
    size_bytes: int | None
    shards: int | None
    """Of the whole source; None: its end is not known."""
    finished: int
    """Shards that are there already."""


def manifest_path(config: PreencodeConfig) -> str:
    """Return where the manifest of the import is."""
    return storage.join(config.tars, "manifest.json")


def settings(config: PreencodeConfig) -> dict[str, Any]:
    """Return what decides the bytes of an import, given the content of its source."""
    return {"source": to_tree(identity(_source(config))), "seed": config.seed}


def check(config: PreencodeConfig) -> None:
    """Raise ConfigError for an import that would write into somebody else's files, or its own."""
    section = _source(config)
    tree = section.name == "folder" or (section.name == "hub" and os.path.isdir(section.path))
    if tree and f"{_real(config.out)}/".startswith(f"{_real(section.path)}/"):
        raise ConfigError(
            f"out `{config.out}` is inside source.path `{section.path}`: an import would find "
            "its own files there",
            "choose another `out`, or put the images into a folder of their own",
        )


def _real(path: str) -> str:
    """Return a path by which a place has one name."""
    is_local = storage.is_local(path)
    return (os.path.realpath(storage.local(path)) if is_local else path).rstrip("/")


def _source(config: PreencodeConfig) -> SourceConfig:
    if config.source is None or config.data.tars:
        raise ConfigError(
            f"data.tars is {config.data.tars!r}: the tars there are used in place, not imported",
            "leave data.tars out to import into <out>/data",
        )
    return config.source


def done(config: PreencodeConfig) -> Mapping[str, Any] | None:
    """Return the manifest of a complete import with these settings, else None."""
    body = _of_settings(config)
    return body if body is not None and _is_of_path(config, body) else None


def _of_settings(config: PreencodeConfig) -> dict[str, Any] | None:
    """Return the manifest of a complete import with these settings, from wherever."""
    wanted = settings(config)  # first, because it refuses tars that are used in place
    body = _complete(config)
    return body if body is not None and {k: body.get(k) for k in wanted} == wanted else None


def _is_of_path(config: PreencodeConfig, body: Mapping[str, Any]) -> bool:
    """Tell whether an import is of the place that the config names, however it is spelled."""
    given, told = _source(config).path, body.get("path")
    return told is None or told == given or _real(told) == _real(given)


def _complete(config: PreencodeConfig) -> dict[str, Any] | None:
    listing = storage.sizes(config.tars)
    return manifest.read_if_complete(manifest_path(config), "source", listing)


def _done_of(config: PreencodeConfig, source: Source) -> dict[str, Any] | None:
    """Return the manifest of a complete import of what the source holds now, else None."""
    body = _of_settings(config)
    return body if body is not None and body.get("listing", "") == source.listing else None


def _identity(config: PreencodeConfig, source: Source) -> str:
    return manifest.fingerprint({**settings(config), "listing": source.listing})


def plan(config: PreencodeConfig) -> Plan:
    """Look at the source and at what is imported of it, touching nothing."""
    check(config)
    source = open_source(_source(config), config.seed)
    if source.rows is None:
        return Plan(source.title, None, source.size_bytes, None, 0)
    slices = list(_slices(source, source.rows))
    there = len(slices)
    if _done_of(config, source) is None:
        fingerprint, files = _identity(config, source), storage.sizes(config.tars)
        found = (
            shards.finished(config.tars, files, i, fingerprint, s) for i, s in enumerate(slices)
        )
        there = sum(body is not None for body in found)
    return Plan(source.title, source.rows, source.size_bytes, len(slices), there)


def _slices(source: Source, rows: int) -> Iterator[Slice]:
    return takewhile(lambda part: part.start < rows, source.slices())


def run(config: PreencodeConfig) -> Imported:
    """Import the source of `config` into `<out>/data`, or find that it is there."""
    check(config)
    source = open_source(_source(config), config.seed)
    storage.sweep_temporary(config.tars)
    body = _done_of(config, source)
    if body is not None:
        if not _is_of_path(config, body):  # the same files in another place
            manifest.write(manifest_path(config), "source", {**body, **_place(config)})
        return _imported(config, body, fresh=False)
    shards.begin(config.tars)
    storage.delete(manifest_path(config))
    total = _bring(config, source)
    told = {**settings(config), **_place(config), "listing": source.listing}
    body = {**told, **_publish(config, source, total)}
    manifest.write(manifest_path(config), "source", body)
    storage.delete(storage.join(config.tars, shards.BEGUN))
    return _imported(config, body, fresh=True)


def _place(config: PreencodeConfig) -> dict[str, str]:
    """Return where the source is, for sources that are the same in another place."""
    section = _source(config)
    return {} if "path" in identity(section) or not section.path else {"path": section.path}


def _bring(config: PreencodeConfig, source: Source) -> shards.Total:
    """Write the shards that are not finished; return what all hold."""
    section, fingerprint = _source(config), _identity(config, source)
    writer = shards.Writer(config.tars, fingerprint, source, section.shard_bytes)
    files, total = writer.discard_others(), shards.Total()
    with progress.bar(f"import {section.name}", source.rows, "rows") as bar:
        for number, part in enumerate(source.slices()):
            body = shards.finished(config.tars, files, number, fingerprint, part)
            if body is None:
                body = writer.write(number, part, bar)
            else:
                bar.advance(body["rows"])
            total.add(number, body)
            if body["rows"] < len(part):
                break  # the source has ended
    return total


def _publish(config: PreencodeConfig, source: Source, total: shards.Total) -> dict[str, Any]:
    """Publish the list of failures; return what the manifest says of the rows."""
    path = storage.join(config.tars, FAILURES)
    shards.publish_failures(config.tars, path, total)
    if not total.samples:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(total.left_out.items()))
        raise ShardError(
            f"{source.title}: no usable row among {total.rows:,}: {reasons or 'it is empty'}",
            f"see `{path}`" if total.failed else None,
        )
    return {
        "rows": total.rows,
        "samples": total.samples,
        "left_out": dict(sorted(total.left_out.items())),
        "ignored": dict(source.ignored),
        "files": total.files,
    }


def _imported(config: PreencodeConfig, body: Mapping[str, Any], *, fresh: bool) -> Imported:
    size = sum(f["bytes"] for f in body["files"].values())
    left_out, ignored = body.get("left_out", {}), body.get("ignored", {})
    count = len(body["files"])
    return Imported(config.tars, body["samples"], count, size, fresh, left_out, ignored)


def list_tars(config: PreencodeConfig) -> list[tars.Tar]:
    """Return the tar shards of a project: what its import lists, or what lies in `data.tars`.

    Raises ShardError when there are none, or those in `data.tars` are of an import of ours that is
    not finished; ConfigError when the import of these settings is not finished.
    """
    in_place = bool(config.data.tars)
    body = _complete_in_place(config) if in_place else done(config)
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


def _complete_in_place(config: PreencodeConfig) -> dict[str, Any] | None:
    """Return the manifest of our import in `data.tars`; None when the tars are somebody else's."""
    listing = storage.sizes(config.tars)
    body = manifest.read_if_complete(manifest_path(config), "source", listing)
    if body is None and shards.is_import(config.tars, listing):
        raise ShardError(
            f"`{config.tars}` holds an import that is not finished, or lacks files",
            "run the import that writes there again; to use the tars that are there as they are, "
            "delete the .json files of the import",
        )
    return body
