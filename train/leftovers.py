"""What an earlier start left that began otherwise, and died before its first checkpoint.

Nothing forbids to begin again with another network or seed then. Its snapshots would count as this
run's: in validation, retention, evaluation and for `init_from`.
"""

from collections.abc import Mapping
from typing import Any

from imagen import config as configs
from imagen import manifest, snapshot, storage
from imagen.member import MemberConfig
from train import results, retention, rundir
from train.config import TrainStageConfig


def initial_weights(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what provenance says of the weights that a run began from; {} for random ones."""
    found = identity["initial weights"]
    return {} if found is None else {"initial_weights": found}


def delete(config: TrainStageConfig, member: str, identity: Mapping[str, Any]) -> list[str]:
    """Delete the snapshots in a run directory without checkpoints that another config made.

    Their results go with them. Those of the same config stay: training will write them again.
    Returns the names of those that went.
    """
    run_dir = config.run_dir(member)
    folder = storage.join(run_dir, rundir.SNAPSHOTS)
    there = storage.listdir(folder)
    gone = [n for n in there if not _belongs(storage.join(folder, n), config, member, identity)]
    if not gone:
        return []
    storage.delete(storage.join(run_dir, rundir.BEST))  # what validation finds, it names again
    for name in gone:
        retention.delete(storage.join(folder, name), snapshot.MANIFEST)
    judged = storage.join(run_dir, results.FOLDER)
    for file in storage.listdir(judged):
        if file.partition(".")[0] not in set(there) - set(gone):
            storage.delete(storage.join(judged, file))
    return gone


def _belongs(
    folder: str, config: TrainStageConfig, member: str, identity: Mapping[str, Any]
) -> bool:
    """Tell whether a run that begins now would make a snapshot like this one, or it is none."""
    path = storage.join(folder, snapshot.MANIFEST)
    body = manifest.read_if_complete(path, snapshot.KIND)
    if body is None:
        return True
    said = body["provenance"]
    wanted = {
        "data_fingerprint": identity["data fingerprint"],
        "encoder_fingerprint": identity["encoder fingerprint"],
        "seed": config.seed,
        "previous_size": identity["size of the member before"],
        "initial_weights": identity["initial weights"],
    }
    return (
        configs.build(MemberConfig, body["config"], where=path) == config.members[member]
        and rundir.known_recipe(said.get("train", {})) == rundir.recipe(config, member)
        and all(said.get(key) == value for key, value in wanted.items())
    )
