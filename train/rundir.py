"""The run directory of one member: the only truth about how far its training is.

```
<out>/<member>/config.yaml                     resolved config, itself a valid input
<out>/<member>/log.jsonl, tensorboard/         what happened
<out>/<member>/checkpoints/<images seen>/      everything needed to go on
<out>/<member>/snapshots/<images seen>/        EMA weights, to sample from
<out>/<member>/attempts/<launch>/              starts and failures of workers (see attempts.py)
<out>/<member>/run.json                        manifest of a finished run, written last
```
"""

from typing import Any

from imagen import checkpoint, manifest, storage
from imagen import config as configs
from imagen.data import images, order
from imagen.errors import CheckpointError
from train.config import TrainStageConfig

MANIFEST = "run.json"
KIND = "run"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
KEEP_CHECKPOINTS = 3


def identity(config: TrainStageConfig, member: str, data: str, encoder: str) -> dict[str, Any]:
    """Return what may not change while a run goes on, by the name a person knows it by."""
    train = config.of(member)
    return {
        "seed": config.seed,
        "global_batch": train.global_batch,
        "lanes": train.lanes,
        "window": train.window,
        "data fingerprint": data,
        "encoder fingerprint": encoder,
        "size of the member before": config.previous_size(member),
        "size": config.members[member].size,
        "network": configs.to_tree(config.members[member].network),
        "diffusion": configs.to_tree(config.members[member].diffusion),
        "order and decoding": [order.VERSION, images.VERSION],
    }


def recipe(config: TrainStageConfig, member: str) -> dict[str, Any]:
    """Return what else decides the weights; it may change between a stop and a resume."""
    free = ("workers", "loader_workers", "microbatch")  # numerics-neutral up to summation order
    intervals = ("checkpoint_every", "snapshot_every", "log_every")
    tree = configs.to_tree(config.of(member))
    return {key: value for key, value in tree.items() if key not in free + intervals}


def recipes(
    earlier: list[dict[str, Any]], images_seen: int, now: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return `{from, recipe}` of each recipe of a run, with `now` from `images_seen` on."""
    if earlier and not differences(earlier[-1]["recipe"], now):
        return earlier
    return [*earlier, {"from": images_seen, "recipe": now}]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return `key: was x, is y` for each difference, nested keys dotted."""
    lines = []
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            lines += differences(was, now, f"{prefix}{key}.")
        elif was != now:
            lines.append(f"{prefix}{key}: was {was}, is {now}")
    return lines


def check_identity(run_dir: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise CheckpointError with the reasons when a run cannot be continued as `wanted`."""
    lines = differences(found, wanted)
    if lines:
        raise CheckpointError(
            f"the run in `{run_dir}` cannot be continued, because the order of its samples, its "
            f"inputs or its network would change: {'; '.join(lines)}",
            "go back to the old values, choose another `out`, or delete the run's folder",
        )


def finished(run_dir: str) -> dict[str, Any] | None:
    """Return the manifest of a finished run whose last snapshot is there, else None."""
    path = storage.join(run_dir, MANIFEST)
    if not storage.exists(path):
        return None
    body = manifest.read(path, KIND, CheckpointError)
    snapshot = storage.join(run_dir, body["snapshot"], "snapshot.json")
    return body if manifest.read_if_complete(snapshot, "snapshot") is not None else None


def newest_images(run_dir: str) -> int:
    """Return `images_seen` of the newest checkpoint, 0 when there is none."""
    return max(checkpoint.saved(storage.join(run_dir, CHECKPOINTS)), default=0)


def newest_identity(run_dir: str) -> dict[str, Any] | None:
    """Return the identity of the run as its newest readable checkpoint has it, else None."""
    folder = storage.join(run_dir, CHECKPOINTS)
    for images_seen in reversed(checkpoint.saved(folder)):
        path = storage.join(folder, checkpoint.folder_name(images_seen), checkpoint.MANIFEST)
        body = manifest.read_if_complete(path, checkpoint.KIND)
        if body is not None:
            return body["meta"]["identity"]
    return None


def check_writable(run_dir: str) -> None:
    """Raise StorageError unless files can be made in a run directory."""
    path = storage.join(run_dir, ".writable")
    storage.put(path, b"")
    storage.delete(path)
