"""The run directory of one member: the only truth about how far its training is.

```
<out>/<member>/config.yaml                     resolved config, itself a valid input
<out>/<member>/log.jsonl, tensorboard/         what happened
<out>/<member>/checkpoints/<images seen>/      everything needed to go on
<out>/<member>/snapshots/<images seen>/        EMA weights, to sample from
<out>/<member>/best.json                       which snapshot validates best
<out>/<member>/ema/<images seen>-<width>/      EMA weights of another width, made after training
<out>/<member>/attempts/<launch>/              starts and failures of workers (see attempts.py)
<out>/<member>/run.json                        manifest of a finished run, written last
```
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from imagen import assembly, checkpoint, manifest, snapshot, storage
from imagen import config as configs
from imagen.data import images, order, resize
from imagen.diffusion.config import DiffusionConfig
from imagen.errors import CheckpointError, ConfigError
from imagen.network.config import UNetConfig
from imagen.project import size_of
from train.config import TrainConfig, TrainStageConfig

MANIFEST = "run.json"
KIND = "run"
BEST_KIND = "best"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
BEST = "best.json"
EMA = "ema"
FREE = (
    *("workers", "loader_workers", "microbatch", "compile", "checkpoint_levels"),
    *("checkpoint_every", "snapshot_every", "log_every"),
    *("keep_checkpoints", "milestone_every", "keep_snapshots", "ema_profiles"),
    *("parallel", "validate", "grid", "cache_gb", "audit", "wandb"),
    "init_from",  # the identity has what it stands for
)
"""Keys of TrainConfig that leave the weights alone, up to the order in which floats are added.

Dropout above 0 is an exception: its draws follow the cut into microbatches, and the compiler.
"""
ACCEPTABLE = (
    *("seed", "global_batch", "lanes", "window", "data fingerprint", "encoder fingerprint"),
    *("diffusion", "order and decoding", "prepared images"),
)
"""Names of the identity that may change when a person says so; the others decide what the weights
of a checkpoint are, and can't."""


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
        "initial weights": _initial_weights(config, member),
    }


def _initial_weights(config: TrainStageConfig, member: str) -> str | None:
    """Return the fingerprint of the weights that a run starts from, None for random ones.

    A run under way keeps the one it has, when `init_from` is as it was and no snapshot folder of
    itself: what a run directory stands for changes, and what was a snapshot may be gone.
    """
    path = config.of(member).init_from
    if not path:
        return None
    if not storage.exists(storage.join(path, snapshot.MANIFEST)):
        begun = newest_meta(config.run_dir(member)) or {}
        weights = begun.get("identity", {}).get("initial weights")
        if weights is not None and path in begun.get("init_from", [path]):
            return weights
    where = storage.join(snapshot_in(path, member), snapshot.MANIFEST)
    return manifest.fingerprint(manifest.read(where, snapshot.KIND, CheckpointError)["files"])


def snapshot_in(path: str, member: str) -> str:
    """Return the snapshot folder that a path stands for.

    Itself; of a run directory the best snapshot by validation, or else the newest; of a cascade
    the member's. Raises CheckpointError.
    """
    if storage.exists(storage.join(path, snapshot.MANIFEST)):
        return path
    cascade = storage.join(path, assembly.MANIFEST)
    if storage.exists(cascade):
        members = manifest.read(cascade, "cascade", CheckpointError)["members"]
        if member in members:
            return storage.join(path, members[member]["folder"])
    else:
        found = best(path) or snapshot.newest(storage.join(path, SNAPSHOTS))
        if found is not None:
            return found
    raise CheckpointError(
        f"`{path}` has no snapshot of {member}: it is neither a snapshot folder, nor a run "
        "directory with snapshots, nor a cascade with this member",
        "name a folder that has a snapshot.json, such as <out>/base/snapshots/000000040000",
    )


def best(run_dir: str) -> str | None:
    """Return the folder of the best snapshot by validation, None when there is no such thing.

    Nor when what names it is damaged, or it is the untrained one.
    """
    named = manifest.read_if_complete(storage.join(run_dir, BEST), BEST_KIND) or {}
    if "snapshot" not in named:
        return None
    folder = storage.join(run_dir, named["snapshot"])
    return folder if snapshot.is_trained(folder) else None


def recipe(config: TrainStageConfig, member: str) -> dict[str, Any]:
    """Return what else decides the weights; it may change between a stop and a resume."""
    tree = configs.to_tree(config.of(member))
    return {key: value for key, value in tree.items() if key not in FREE}


def known_identity(stored: dict[str, Any]) -> dict[str, Any]:
    """Return an identity as today's code would have stored it: with options that came later."""
    takes_text = stored["network"]["text_dim"] > 0
    return {
        "prepared images": None,
        "initial weights": None,
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


def check_identity(
    run_dir: str, found: dict[str, Any], wanted: dict[str, Any], accept: Sequence[str] = ()
) -> list[str]:
    """Return the differences that `accept` allows, as `differences` has them; usually none.

    Raises CheckpointError with the reasons when a run cannot be continued as `wanted`.
    """
    allowed = accepted(accept)
    names = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    refused = [name for name in names if name not in allowed]
    if refused:
        raise CheckpointError(
            f"the run in `{run_dir}` cannot be continued, because the order of its samples, its "
            "inputs or its network would change: "
            + "; ".join(differences(_only(refused, found), _only(refused, wanted))),
            _way_out(refused),
        )
    return differences(_only(names, found), _only(names, wanted))


def _only(names: list[str], tree: dict[str, Any]) -> dict[str, Any]:
    return {name: tree.get(name) for name in names}


def _way_out(refused: list[str]) -> str:
    """Return what can be done about differences of these names."""
    others = "choose another `out`, or delete the run's folder"
    if any(name not in ACCEPTABLE for name in refused):
        return f"go back to the old values, {others}"
    flags = " ".join(f"--accept {name.replace(' ', '-')}" for name in refused)
    return f"go back to the old values, {others}; to go on all the same, add {flags}"


def accepted(names: Sequence[str]) -> set[str]:
    """Return names of the identity as the identity has them: `data-fingerprint` for a shell.

    Raises ConfigError for what is no such name, or must not change.
    """
    known = {_plain(name): name for name in ACCEPTABLE}
    for name in names:
        if _plain(name) not in known:
            close = difflib.get_close_matches(_plain(name), known, n=1)
            flags = ", ".join(key.replace(" ", "-") for key in ACCEPTABLE)
            raise ConfigError(
                f"--accept {name}: this is nothing that a run under way can take as changed",
                f"did you mean {known[close[0]].replace(' ', '-')}?" if close else f"it is {flags}",
            )
    return {known[_plain(name)] for name in names}


def _plain(name: str) -> str:
    return name.replace("-", " ").replace("_", " ").strip().lower()


def continued(images_seen: int, global_batch: int) -> int:
    """Return where a run goes on: at a whole global batch, also when that was changed."""
    return -(-images_seen // global_batch) * global_batch


def finished(run_dir: str) -> dict[str, Any] | None:
    """Return the manifest of a finished run whose last snapshot is there, else None."""
    path = storage.join(run_dir, MANIFEST)
    if not storage.exists(path):
        return None
    body = manifest.read(path, KIND, CheckpointError)
    body["identity"] = known_identity(body["identity"])
    body["recipe"] = known_recipe(body["recipe"])
    last = storage.join(run_dir, body["snapshot"], snapshot.MANIFEST)
    return body if manifest.read_if_complete(last, snapshot.KIND) is not None else None


def newest_images(run_dir: str) -> int:
    """Return `images_seen` of the newest checkpoint, 0 when there is none."""
    return max(checkpoint.saved(storage.join(run_dir, CHECKPOINTS)), default=0)


def newest_identity(run_dir: str) -> dict[str, Any] | None:
    """Return the identity of a run as `newest_meta` has it, else None."""
    found = newest_meta(run_dir)
    return None if found is None else found["identity"]


def newest_meta(run_dir: str) -> dict[str, Any] | None:
    """Return what the newest readable checkpoint keeps of the run, else the manifest of a finished
    run whose checkpoints are gone, else None."""
    folder = storage.join(run_dir, CHECKPOINTS)
    for images_seen in reversed(checkpoint.saved(folder)):
        path = storage.join(folder, checkpoint.folder_name(images_seen), checkpoint.MANIFEST)
        body = manifest.read_if_complete(path, checkpoint.KIND)
        if body is not None:
            return {**body["meta"], "identity": known_identity(body["meta"]["identity"])}
    return finished(run_dir)


def check_writable(run_dir: str) -> None:
    """Raise StorageError unless files can be made in a run directory."""
    path = storage.join(run_dir, ".writable")
    storage.put(path, b"")
    storage.delete(path)
