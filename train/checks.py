"""What a run is refused for, on the driver and before machines are asked for: what, where, a hint.

What the config alone tells is refused when it is read (train/config.py).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from imagen import storage
from imagen.data.prepared import Prepared, ShardInfo
from imagen.errors import CheckpointError, ConfigError, ShardError
from runtime import wandb_run
from train import initial, prefetch, rundir
from train.config import TrainStageConfig
from train.data import Microbatch
from train.job import Inputs

PROBE = 8
"""Samples that are read before machines are asked for."""
NAMED = 5
"""Shards that a message names."""


def check(config: TrainStageConfig, member: str, accept: Sequence[str] = ()) -> Inputs:
    """Return the inputs of a run that can start or go on. Raises ImagenError with the reason.

    `accept`: names of the run's identity that may differ from its checkpoints'. Touches nothing
    but the cache of remote shards.
    """
    train = config.of(member)
    rundir.accepted(accept)
    wandb_run.check(train.wandb)
    initial.check(config, member)
    inputs = Inputs.open(config, member)
    _check_width(config, member, inputs)
    _check_resume(config, member, inputs, accept)
    check_tars(inputs.prepared)
    prefetch.check_room(inputs, train)
    first = range(min(PROBE, train.global_batch))
    _probe(inputs.samples(config, member).__getitems__(first))
    return inputs


def _check_width(config: TrainStageConfig, member: str, inputs: Inputs) -> None:
    width, found = config.members[member].network.text_dim, inputs.embeddings
    if found is not None and width != found.dim:
        raise ConfigError(
            f"members.{member}.network.text_dim is {width}, the embeddings in "
            f"`{found.folder}` are {found.dim} wide",
            f"set members.{member}.network.text_dim={found.dim}",
        )


def _check_resume(
    config: TrainStageConfig, member: str, inputs: Inputs, accept: Sequence[str]
) -> None:
    run_dir, train = config.run_dir(member), config.of(member)
    found = rundir.newest_identity(run_dir)
    if found is None:
        return
    rundir.check_identity(run_dir, found, inputs.identity, accept)
    seen = images_seen(config, member)
    done = rundir.finished(run_dir)
    if not rundir.newest_images(run_dir) and seen < train.total:
        raise CheckpointError(
            f"the run in `{run_dir}` is finished after {seen:,} images, and its checkpoints are "
            f"gone: it cannot go on to {train.total:,}",
            "start another `out` from it with init_from, or delete the run's folder to start over",
        )
    if seen > train.total:
        raise ConfigError(
            f"the run in `{run_dir}` has seen {seen:,} images, the config asks for {train.total:,}",
            "raise train.images, choose another `out`, or delete the run's folder",
        )
    if done is not None and seen == train.total:
        lines = rundir.differences(done["recipe"], rundir.recipe(config, member))
        if lines:
            raise ConfigError(
                f"the run in `{run_dir}` is finished, but was trained otherwise: "
                f"{'; '.join(lines)}",
                "raise train.images to go on with the new values, choose another `out`, "
                "or delete the run's folder to start over",
            )


def images_seen(config: TrainStageConfig, member: str) -> int:
    """Return where a run goes on: 0 when it has not begun."""
    run_dir = config.run_dir(member)
    newest = rundir.newest_images(run_dir)
    if not newest:  # not begun; or finished, and its checkpoints deleted
        newest = (rundir.finished(run_dir) or {}).get("images_seen", 0)
    return rundir.continued(newest, config.of(member).global_batch)


def check_tars(prepared: Prepared) -> None:
    """Raise ShardError when tars are gone or are not those that were indexed.

    One listing of each folder tells; nothing is read of the tars.
    """
    folders: dict[str, list[ShardInfo]] = defaultdict(list)
    for shard in prepared.shards:
        folders[shard.tar.rpartition("/")[0]].append(shard)
    gone: list[str] = []
    changed: list[str] = []
    for folder, shards in folders.items():
        there = storage.scan(folder)
        for shard in shards:
            entry = there.get(storage.name(shard.tar))
            if entry is None:
                gone.append(shard.tar)
            elif shard.tar_bytes not in (None, entry.size):
                changed.append(f"{shard.tar}: {entry.size} bytes, not {shard.tar_bytes}")
            elif _is_of_store(shard.tar_version) and shard.tar_version != entry.version:
                changed.append(f"{shard.tar}: written again")
    again = "run `python -m preencode CONFIG`: it looks at the tars that changed again"
    if gone:
        what = f"{len(gone)} of {len(prepared.shards)} tars are gone since they were indexed"
        raise ShardError(f"{what}: {_few(gone)}", "bring them back, or " + again)
    if changed:
        what = f"{len(changed)} of {len(prepared.shards)} tars have changed since they were indexed"
        raise ShardError(f"{what}: {_few(changed)}", again)


def _is_of_store(version: str | None) -> bool:
    """Tell whether a version is one that a listing shows: that of prepared images is of content."""
    return version is not None and not version.startswith("crc32c-")


def _few(lines: Sequence[str]) -> str:
    return ", ".join(lines[:NAMED]) + (" …" if len(lines) > NAMED else "")


def _probe(batch: Microbatch) -> None:
    """Raise ShardError when not one of the first samples can be decoded."""
    if not float(batch.weight.sum()):
        first: Any = batch.bad[0]
        raise ShardError(
            f"none of the first {len(batch.bad)} training images can be used; `{first.key}`: "
            f"{first.detail}",
            "check the images and the size of the last member",
        )
