"""Checkpoints: everything a run needs to go on, complete or not there at all.

```
<folder>/<images seen, 12 digits>/state-<attempt>.safetensors    tensors
<folder>/<images seen, 12 digits>/checkpoint.json                manifest, written last
```
The name of the data file is unique to its writer, so a writer that was thought dead and its
successor never mix: whichever manifest is there names files of one of them. No pickle anywhere.
"""

import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from imagen import manifest, storage
from imagen.errors import CheckpointError, ImagenError

MANIFEST = "checkpoint.json"
KIND = "checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    images_seen: int
    meta: dict[str, Any]
    """What `save` was given, as JSON."""
    tensors: dict[str, torch.Tensor]


def folder_name(images_seen: int) -> str:
    """Return the name that sorts by progress: 12 digits."""
    return f"{images_seen:012d}"


def save(
    folder: str, images_seen: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
) -> str:
    """Write a checkpoint below `folder`; return its own folder. Raises StorageError."""
    own = storage.join(folder, folder_name(images_seen))
    data = safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()})
    files = manifest.put_files(own, {f"state-{uuid.uuid4().hex[:12]}.safetensors": data})
    body = {"images_seen": images_seen, "meta": dict(meta), "files": files}
    manifest.write(storage.join(own, MANIFEST), KIND, body)
    return own


def saved(folder: str) -> list[int]:
    """Return `images_seen` of each checkpoint that has a manifest, ascending."""
    names = [n for n in storage.listdir(folder) if n.isdecimal() and len(n) == 12]
    return [int(n) for n in names if storage.exists(storage.join(folder, n, MANIFEST))]


def load(folder: str, images_seen: int) -> Checkpoint:
    """Return one checkpoint. Raises CheckpointError, also when a byte of it has changed."""
    path = storage.join(folder, folder_name(images_seen), MANIFEST)
    body = manifest.read(path, KIND, CheckpointError)
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in body["files"].items():
        file = storage.join(folder, folder_name(images_seen), name)
        data = manifest.check_file(file, storage.get(file), entry, CheckpointError)
        tensors |= safetensors.torch.load(data)
    return Checkpoint(body["images_seen"], body["meta"], tensors)


def _warn(_: int, reason: str) -> None:
    warnings.warn(f"skipping a damaged checkpoint: {reason}", stacklevel=3)


def latest(folder: str, skipped: Callable[[int, str], None] = _warn) -> Checkpoint | None:
    """Return the newest valid checkpoint, or None.

    `skipped(images_seen, reason)` is told of each newer one that is damaged; it warns if not given.
    """
    for images_seen in reversed(saved(folder)):
        try:
            return load(folder, images_seen)
        except ImagenError as err:
            skipped(images_seen, err.message)
    return None


def retain(folder: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, each with its manifest first."""
    for images_seen in saved(folder)[:-keep]:
        own = storage.join(folder, folder_name(images_seen))
        storage.delete(storage.join(own, MANIFEST))
        for name in storage.listdir(own):
            storage.delete(storage.join(own, name))
        storage.delete_folder(own)
