"""Manifests: the small JSON files that say "complete". Data first, manifest last.

A manifest lists each data file with its size and CRC-32C. What has a manifest whose files are all
there in their right size is done; everything else is work to do again.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from imagen import storage
from imagen.errors import ImagenError, ShardError, StorageError


def fingerprint(value: Any) -> str:
    """Return 16 hex digits that identify a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf8")).hexdigest()[:16]


def put_files(folder: str, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Publish `files` (name -> bytes) in `folder`; return the `files` entry of a manifest."""
    for name, data in files.items():
        storage.put(storage.join(folder, name), data)
    return {n: {"bytes": len(d), "crc32c": storage.crc32c(d)} for n, d in files.items()}


def write(path: str, kind: str, body: Mapping[str, Any]) -> None:
    """Publish a manifest: `{"format": "imagen/<kind>/1", **body}`. Call it last."""
    storage.put(path, _text(kind, body))


def replace(path: str, kind: str, body: Mapping[str, Any], version: str | None) -> bool:
    """Publish a manifest if the file still has `version`, None: if there is none.

    For manifests that several may write: what is there is looked at first, see `storage.replace`.
    """
    return storage.replace(path, _text(kind, body), version)


def _text(kind: str, body: Mapping[str, Any]) -> bytes:
    text = json.dumps({"format": f"imagen/{kind}/1", **body}, indent=1, ensure_ascii=False)
    return text.encode("utf8") + b"\n"


def read(path: str, kind: str, error: type[ImagenError] = ShardError) -> dict[str, Any]:
    """Return a manifest. Raises `error` when it is missing, damaged or of another format."""
    data = storage.get_if_there(path)
    if data is None:
        raise error(f"no manifest `{path}`: what it stands for is missing or unfinished")
    return _parse(path, data, kind, error)


def _parse(path: str, data: bytes, kind: str, error: type[ImagenError]) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as err:
        raise error(f"manifest `{path}` is damaged: {err}", "delete it and run again") from err
    if not isinstance(body, dict) or body.get("format") != f"imagen/{kind}/1":
        found = body.get("format") if isinstance(body, dict) else type(body).__name__
        raise error(f"`{path}` has format {found!r}, not 'imagen/{kind}/1'")
    return body


def read_if_complete(
    path: str, kind: str, listing: Mapping[str, int] | None = None
) -> dict[str, Any] | None:
    """Return a manifest whose files are all there in their right size, else None.

    Raises StorageError when that cannot be found out.

    With the `listing` of its folder (`storage.sizes`) no file is looked up one by one.
    """
    folder, _, name = path.rpartition("/")
    data = None if listing is not None and name not in listing else storage.get_if_there(path)
    if data is None:
        return None

    def size(file: str) -> int | None:
        return storage.size(storage.join(folder, file)) if listing is None else listing.get(file)

    try:
        body = _parse(path, data, kind, ShardError)
        wanted = {file: entry["bytes"] for file, entry in body.get("files", {}).items()}
        return body if all(size(file) == wanted[file] for file in wanted) else None
    except ShardError:
        return None  # damaged
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return None
        raise  # what cannot be looked at is not known to be missing


def check_file(
    path: str, data: bytes, entry: Mapping[str, Any], error: type[ImagenError] = ShardError
) -> bytes:
    """Return `data` if it is what the manifest's `entry` says, else raise `error`."""
    found = storage.crc32c(data)
    if len(data) != entry["bytes"] or found != entry["crc32c"]:
        raise error(
            f"`{path}` has {len(data)} bytes with checksum {found}, its manifest says "
            f"{entry['bytes']} with {entry['crc32c']}",
            "the file was damaged or replaced after it was written: delete its manifest and rerun",
        )
    return data
