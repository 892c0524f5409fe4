"""Checkpoints: everything a run needs to go on, complete or not there at all.

```
<folder>/<images seen, 12 digits>/state-<attempt>-<rank>-<n>.safetensors   a rank's share
<folder>/<images seen, 12 digits>/layout-<attempt>.json                    what is where in them
<folder>/<images seen, 12 digits>/checkpoint.json                          manifest, written last
```
The names of data files are unique to an attempt, so writers that were thought dead and their
successors never mix: whichever manifest is there names files of one of them. No pickle anywhere.
All ranks write and read by imagen/sharded.py; `save` and `load` here are for one process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagen import manifest, storage
from imagen.errors import DamagedError

if TYPE_CHECKING:  # who only looks for checkpoints need not wait for torch
    import torch

    from imagen.slices import Layout

MANIFEST = "checkpoint.json"
KIND = "checkpoint"
DATA = "state"
LAYOUT = "layout"


@dataclass(frozen=True, slots=True)
class Contents:
    """A complete checkpoint whose tensors are not read yet."""

    folder: str
    images_seen: int
    meta: dict[str, Any]
    """What it was saved with, as JSON."""
    layout: "Layout"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    images_seen: int
    meta: dict[str, Any]
    """What `save` was given, as JSON."""
    tensors: "dict[str, torch.Tensor]"


def folder_name(images_seen: int) -> str:
    """Return the name that sorts by progress: 12 digits."""
    return f"{images_seen:012d}"


def _folders(folder: str) -> list[int]:
    return [int(n) for n in storage.listdir(folder) if n.isdecimal() and len(n) == 12]


def saved(folder: str) -> list[int]:
    """Return `images_seen` of each checkpoint that has a manifest, ascending."""
    found = _folders(folder)
    return [n for n in found if storage.exists(storage.join(folder, folder_name(n), MANIFEST))]


def look_into(folder: str, images_seen: int) -> Contents:
    """Return what is in a checkpoint. Raises DamagedError unless all files have their size."""
    own = storage.join(folder, folder_name(images_seen))
    body = manifest.read(storage.join(own, MANIFEST), KIND, DamagedError)
    files = body["files"]
    _check_sizes(own, files)
    return Contents(own, body["images_seen"], body["meta"], _layout(own, body.get("layout"), files))


def _check_sizes(own: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    sizes = storage.sizes(own)
    for name, entry in files.items():
        path = storage.join(own, name)
        if name not in sizes:
            raise DamagedError(f"`{path}` does not exist, and its manifest lists it")
        if sizes[name] != entry["bytes"]:
            raise DamagedError(
                f"`{path}` has {sizes[name]} bytes, its manifest says {entry['bytes']}"
            )


def _layout(own: str, name: str | None, files: Mapping[str, Mapping[str, Any]]) -> "Layout":
    from imagen import slices

    if name is None:  # an older format
        return slices.of_whole_files(own, files)
    path = storage.join(own, name)
    data = storage.get(path)
    return slices.from_json(manifest.check_file(path, data, files[name], DamagedError))


def save(
    folder: str, images_seen: int, tensors: "Mapping[str, torch.Tensor]", meta: Mapping[str, Any]
) -> str:
    """Write a checkpoint below `folder`; return its own folder. Raises StorageError."""
    from imagen import sharded

    sharded.write(folder, images_seen, sharded.Staged(tensors), meta)
    return storage.join(folder, folder_name(images_seen))


def load(folder: str, images_seen: int) -> Checkpoint:
    """Return one checkpoint. Raises DamagedError, also when a byte of it has changed."""
    import torch

    from imagen import sharded

    found = look_into(folder, images_seen)
    state = {name: torch.empty(w.shape, dtype=w.dtype) for name, w in found.layout.items()}
    sharded.read_into(state, found)
    return Checkpoint(found.images_seen, found.meta, state)


def delete(folder: str, images_seen: int) -> None:
    """Delete a checkpoint, its manifest first."""
    own = storage.join(folder, folder_name(images_seen))
    storage.delete(storage.join(own, MANIFEST))
    for name in storage.listdir(own):
        storage.delete(storage.join(own, name))
    storage.sweep_temporary(own, older_than_s=0)
    storage.delete_folder(own)


def sweep(folder: str, images_seen: int) -> None:
    """Delete what killed writers left up to a checkpoint that has just been completed.

    In its own folder that is what its manifest does not list; older folders without a manifest go
    altogether. A writer that still lives behind a newer checkpoint loses nothing of worth.
    """
    there = set(saved(folder))
    if images_seen not in there:
        return  # another process has deleted it
    for older in _folders(folder):
        if older < images_seen and older not in there:
            delete(folder, older)
    own = storage.join(folder, folder_name(images_seen))
    listed = manifest.read(storage.join(own, MANIFEST), KIND, DamagedError)["files"]
    for name in storage.listdir(own):
        if name not in listed and name != MANIFEST:
            storage.delete(storage.join(own, name))
    storage.sweep_temporary(own, older_than_s=0)
