"""What an evaluation stands on: the newest snapshot of each member, and what identifies it all."""

from dataclasses import dataclass
from typing import Any

from eval.config import EvalConfig
from eval.prompts import items
from imagen import manifest, snapshot, storage
from imagen.config import build, to_tree
from imagen.data.prepared import Prepared
from imagen.errors import CheckpointError
from imagen.member import MemberConfig
from imagen.request import Request, plan


@dataclass(frozen=True, slots=True)
class Inputs:
    """Snapshot folders of the members in order, their manifests, and a fingerprint of the whole."""

    snapshots: dict[str, str]
    bodies: dict[str, dict[str, Any]]
    fingerprint: str

    @property
    def images_seen(self) -> dict[str, int]:
        """Images that each member has been trained on."""
        return {name: int(b["provenance"]["images_seen"]) for name, b in self.bodies.items()}


def gather(config: EvalConfig) -> Inputs:
    """Find the newest snapshot of every member.

    Raises CheckpointError when a member has none, or when members saw different data or encoders.
    """
    snapshots = {name: _newest(config, name) for name in config.members}
    bodies = {
        name: manifest.read(storage.join(folder, snapshot.MANIFEST), snapshot.KIND, CheckpointError)
        for name, folder in snapshots.items()
    }
    _check_agreement(bodies)
    return Inputs(snapshots, bodies, _fingerprint(config, bodies))


def _newest(config: EvalConfig, member: str) -> str:
    folder = storage.join(config.run_dir(member), "snapshots")
    newest = snapshot.newest(folder)
    if newest is None:
        raise CheckpointError(
            f"member {member} has no snapshot in `{folder}`",
            f"run `python -m train CONFIG member={member}`",
        )
    return newest


def _check_agreement(bodies: dict[str, dict[str, Any]]) -> None:
    takers = {n: b for n, b in bodies.items() if b["config"]["network"]["text_dim"]}
    for key, those in (("data_fingerprint", bodies), ("encoder_fingerprint", takers)):
        found = {name: body["provenance"].get(key) for name, body in those.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            raise CheckpointError(
                f"the members were trained with different values of {key}: {told}",
                "train the older one again",
            )


def check_data(inputs: Inputs, prepared: Prepared) -> None:
    """Raise CheckpointError unless the members were trained on this data set, split as it is now.

    With another split, images that count as held out could have been trained on.
    """
    for name, body in inputs.bodies.items():
        trained_on = body["provenance"].get("data_fingerprint")
        if trained_on != prepared.fingerprint:
            raise CheckpointError(
                f"member {name} was trained on data {trained_on}, the prepared data set is "
                f"{prepared.fingerprint}",
                "prepare the data as it was (same tars, same data.heldout), or train again",
            )


def check_sampling(config: EvalConfig, inputs: Inputs) -> None:
    """Raise ConfigError unless these members can be sampled as the `eval` section asks."""
    bodies = inputs.bodies
    members = {n: build(MemberConfig, b["config"], inputs.snapshots[n]) for n, b in bodies.items()}
    provenances = {name: body["provenance"] for name, body in bodies.items()}
    plan(Request(prompts=[""], seeds=[0], options=config.eval.options), members, provenances)


def _fingerprint(config: EvalConfig, bodies: dict[str, dict[str, Any]]) -> str:
    section = config.eval
    return manifest.fingerprint(
        {
            "members": bodies,
            "text": to_tree(config.text),
            "eval": to_tree(section),
            # a prompts file may change under the same name
            "items": [[item.prompt, item.seed] for item in items(section)],
        }
    )
