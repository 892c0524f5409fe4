"""Snapshots: EMA weights, member config and provenance. What is sampled, shared and assembled.

```
<folder>/weights-<digest>.safetensors
<folder>/snapshot.json                   manifest, written last
```
The name of the data file follows from its bytes: a writer that was thought dead and its successor
never tear each other's file, and the same weights make the same files.
"""

import hashlib
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
) -> None:
    """Write a snapshot of member `name` into `folder`, in place of what is there.

    Raises StorageError.
    """
    data = safetensors.torch.save({key: t.detach().contiguous() for key, t in state_dict.items()})
    file = f"{_WEIGHTS}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    body = {
        "member": name,
        "config": configs.to_tree(config),
        "provenance": dict(provenance),
        "files": manifest.put_files(folder, {file: data}),
    }
    manifest.write(storage.join(folder, MANIFEST), KIND, body)
    for old in storage.listdir(folder):  # weights of an earlier attempt
        if old.startswith(_WEIGHTS) and old != file:
            storage.delete(storage.join(folder, old))


def load(folder: str) -> Snapshot:
    """Return the snapshot in `folder`. Raises CheckpointError when it is missing or damaged."""
    path = storage.join(folder, MANIFEST)
    body = manifest.read(path, KIND, CheckpointError)
    state_dict: dict[str, torch.Tensor] = {}
    for name, entry in body["files"].items():
        file = storage.join(folder, name)
        data = manifest.check_file(file, storage.get(file), entry, CheckpointError)
        state_dict |= safetensors.torch.load(data)
    config = configs.build(MemberConfig, body["config"], where=path)
    return Snapshot(body["member"], config, state_dict, body["provenance"])


def newest(folder: str) -> str | None:
    """Return the folder of the newest complete snapshot in a run's `snapshots` folder, or None."""
    for name in reversed(storage.listdir(folder)):
        own = storage.join(folder, name)
        if manifest.read_if_complete(storage.join(own, MANIFEST), KIND) is not None:
            return own
    return None
