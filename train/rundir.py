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

import dataclasses
from typing import Any

from imagen import checkpoint, manifest, storage
from imagen import config as configs
from imagen.data import images, order, resize
from imagen.diffusion.config import DiffusionConfig
from imagen.errors import CheckpointError
from imagen.network.config import UNetConfig
from imagen.project import size_of
from train.config import TrainConfig, TrainStageConfig

MANIFEST = "run.json"
KIND = "run"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
KEEP_CHECKPOINTS = 3
FREE = (
    *("workers", "loader_workers", "microbatch", "compile", "checkpoint_levels"),
    *("checkpoint_every", "snapshot_every", "log_every"),
    *("keep_checkpoints", "milestone_every", "keep_snapshots", "ema_profiles"),
    *("parallel", "validate", "grid", "cache_gb", "audit", "wandb"),
)
"""Keys of TrainConfig that leave the weights alone, up to the order in which floats are added.

Dropout above 0 is an exception: its draws follow the cut into microbatches, and the compiler.
"""


def identity(
    config: TrainStageConfig, member: str, data: str, encoder: str | None
) -> dict[str, Any]:
    """Return what may not change while a run goes on, by the name a person knows it by.

    `data` and `encoder` are fingerprints; a member without text has no encoder. `data` is of the
    source also when the images are prepared: evaluation compares it between members.
    """
    train, previous = config.of(member), config.previous_shape(member)
    return {
        "seed": config.seed,
        "global_batch": train.global_batch,
        "lanes": train.lanes,
        "window": train.window,
        "data fingerprint": data,
        "encoder fingerprint": encoder,
        "size of the member before": None if previous is None else size_of(previous),
        "size": size_of(config.members[member].shape),
        "network": configs.to_tree(config.members[member].network),
        "diffusion": configs.to_tree(config.members[member].diffusion),
        "order and decoding": [order.VERSION, images.VERSION],
        "prepared images": resize.VERSION if config.data.prepare else None,
    }


def recipe(config: TrainStageConfig, member: str) -> dict[str, Any]:
    """Return what else decides the weights; it may change between a stop and a resume."""
    tree = configs.to_tree(config.of(member))
    return {key: value for key, value in tree.items() if key not in FREE}


def known_identity(stored: dict[str, Any]) -> dict[str, Any]:
    """Return an identity as today's code would have stored it: with options that came later."""
    takes_text = stored["network"]["text_dim"] > 0
    return {
        "prepared images": None,
        **stored,
        "encoder fingerprint": stored["encoder fingerprint"] if takes_text else None,
        "network": _completed(stored["network"], UNetConfig),
        "diffusion": _completed(stored["diffusion"], DiffusionConfig),
    }


def known_recipe(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe as today's code would have stored it: with options that came later."""
    known = _completed(stored, TrainConfig)
    return {key: value for key, value in known.items() if key not in FREE}


def known_recipes(stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the recipes of a checkpoint as today's code would have stored them."""
    return [{**entry, "recipe": known_recipe(entry["recipe"])} for entry in stored]


def _completed(stored: dict[str, Any], cls: type) -> dict[str, Any]:
    """Return a stored section with the defaults of options that it lacks: what it meant."""
    fields = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
    later = {f.name: configs.to_tree(f.default) for f in fields if f.name not in stored}
    return stored | later


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
    body["identity"] = known_identity(body["identity"])
    body["recipe"] = known_recipe(body["recipe"])
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
            return known_identity(body["meta"]["identity"])
    return None


def check_writable(run_dir: str) -> None:
    """Raise StorageError unless files can be made in a run directory."""
    path = storage.join(run_dir, ".writable")
    storage.put(path, b"")
    storage.delete(path)
