"""Snapshots: EMA weights, member config and provenance. What is sampled, shared and assembled.

```
<folder>/weights-<digest>.safetensors
<folder>/<extra>-<digest>.safetensors    other weights of the same moment: raw, ema@0.05, …
<folder>/snapshot.json                   manifest, written last
```
The weights are enough to sample from. Extras are for the run itself: only who asks reads them, and
cascades leave them behind.

The name of the data file follows from its bytes: a writer that was thought dead and its successor
never tear each other's file, and the same weights make the same files.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from imagen import config as configs
from imagen import manifest, storage
from imagen.errors import CheckpointError
from imagen.member import MemberConfig

MANIFEST = "snapshot.json"
KIND = "snapshot"
_WEIGHTS = "weights"
_DATA = re.compile(r".+-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete, verified snapshot."""

    name: str
    """The member's name in its cascade: base, sr1, sr2."""
    config: MemberConfig
    state_dict: dict[str, torch.Tensor]
    """EMA weights, float32, on the CPU."""
    provenance: dict[str, Any]
    """Data and encoder fingerprints, code version, images seen."""


def save(
    folder: str,
    name: str,
    config: MemberConfig,
    state_dict: Mapping[str, torch.Tensor],
    provenance: Mapping[str, Any],
    extras: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Write a snapshot of member `name` into `folder`, in place of what is there.

    `extras`: other weights by name. Raises StorageError.
    """
    body = {
        "member": name,
        "config": configs.to_tree(config),
        "provenance": dict(provenance),
        "files": _put(folder, _WEIGHTS, state_dict),
    }
    if extras:
        body["extras"] = {extra: _put(folder, extra, extras[extra]) for extra in extras}
    manifest.write(storage.join(folder, MANIFEST), KIND, body)
    files = {file for part in (body["files"], *body.get("extras", {}).values()) for file in part}
    for old in storage.listdir(folder):  # data of an earlier attempt
        if _DATA.fullmatch(old) and old not in files:
            storage.delete(storage.join(folder, old))


def _put(folder: str, name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Publish tensors as one file that is named after its bytes; return its `files` entry."""
    data = safetensors.torch.save({key: t.detach().contiguous() for key, t in tensors.items()})
    file = f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    return manifest.put_files(folder, {file: data})


def load(folder: str) -> Snapshot:
    """Return the snapshot in `folder`. Raises CheckpointError when it is missing or damaged."""
    path = storage.join(folder, MANIFEST)
    body = manifest.read(path, KIND, CheckpointError)
    state_dict = _read(folder, body["files"])
    config = configs.build(MemberConfig, body["config"], where=path)
    return Snapshot(body["member"], config, state_dict, body["provenance"])


def load_extra(folder: str, name: str) -> dict[str, torch.Tensor]:
    """Return other weights that a snapshot was saved with. Raises CheckpointError."""
    path = storage.join(folder, MANIFEST)
    extras = manifest.read(path, KIND, CheckpointError).get("extras", {})
    if name not in extras:
        raise CheckpointError(
            f"snapshot `{folder}` has no {name} beside its weights; it has: "
            f"{', '.join(extras) or 'nothing'}"
        )
    return _read(folder, extras[name])


def _read(folder: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the tensors of the files that a manifest lists. Raises CheckpointError."""
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in files.items():
        file = storage.join(folder, name)
        data = manifest.check_file(file, storage.get(file), entry, CheckpointError)
        tensors |= safetensors.torch.load(data)
    return tensors


def newest(folder: str) -> str | None:
    """Return the folder of the newest trained snapshot in a run's `snapshots` folder, or None."""
    for name in reversed(storage.listdir(folder)):
        own = storage.join(folder, name)
        if is_trained(own):
            return own
    return None


def is_trained(folder: str) -> bool:
    """Tell whether there is a complete snapshot of a network that has seen images.

    Runs write one of the moment they begin, to compare with; it is of no other use.
    """
    body = manifest.read_if_complete(storage.join(folder, MANIFEST), KIND)
    return body is not None and body["provenance"].get("images_seen") != 0
