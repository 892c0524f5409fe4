"""Snapshots: EMA weights, member config and provenance. What is sampled, shared and assembled.

```
<folder>/weights.safetensors
<folder>/snapshot.json          manifest, written last
```
"""

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
WEIGHTS = "weights.safetensors"


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
    """Write a snapshot of member `name` into `folder`. Raises StorageError."""
    data = safetensors.torch.save({key: t.detach().contiguous() for key, t in state_dict.items()})
    body = {
        "member": name,
        "config": configs.to_tree(config),
        "provenance": dict(provenance),
        "files": manifest.put_files(folder, {WEIGHTS: data}),
    }
    manifest.write(storage.join(folder, MANIFEST), KIND, body)


def load(folder: str) -> Snapshot:
    """Return the snapshot in `folder`. Raises CheckpointError when it is missing or damaged."""
    path = storage.join(folder, MANIFEST)
    body = manifest.read(path, KIND, CheckpointError)
    file = storage.join(folder, WEIGHTS)
    data = manifest.check_file(file, storage.get(file), body["files"][WEIGHTS], CheckpointError)
    config = configs.build(MemberConfig, body["config"], where=path)
    return Snapshot(body["member"], config, safetensors.torch.load(data), body["provenance"])


def newest(folder: str) -> str | None:
    """Return the folder of the newest complete snapshot in a run's `snapshots` folder, or None."""
    for name in reversed(storage.listdir(folder)):
        own = storage.join(folder, name)
        if manifest.read_if_complete(storage.join(own, MANIFEST), KIND) is not None:
            return own
    return None
