"""What an evaluation stands on: a snapshot of each member, and what identifies it all."""

from dataclasses import dataclass, replace
from typing import Any

from eval import extractors, lineups
from eval.config import EvalConfig, EvalSection
from eval.lineups import Lineup
from eval.prompts import items
from imagen import manifest, storage
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
    def images(self) -> int:
        """Most images that a member has seen."""
        return max(self.images_seen.values())

    @property
    def images_seen(self) -> dict[str, int]:
        """Images that each member has been trained on."""
        return {name: int(b["provenance"]["images_seen"]) for name, b in self.bodies.items()}


def gather(config: EvalConfig, lineup: Lineup | None = None) -> Inputs:
    """Return what the evaluation of a line-up stands on; None: of the newest of every member.

    Raises CheckpointError when a member has none, or when members saw different data or encoders.
    """
    chosen = lineup or lineups.newest(config)
    _check_agreement(chosen.bodies)
    return Inputs(chosen.snapshots, chosen.bodies, _fingerprint(config, chosen.bodies))


def of_members(config: EvalConfig, inputs: Inputs) -> EvalConfig:
    """Return the config of a project that has no more members than are evaluated."""
    return replace(config, members={name: config.members[name] for name in inputs.snapshots})


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
    section = replace(config.eval, wandb="")
    bodies = {n: {k: v for k, v in b.items() if k != "extras"} for n, b in bodies.items()}
    return manifest.fingerprint(
        {
            "members": bodies,
            "text": to_tree(config.text),
            "eval": to_tree(section),
            # a prompts file may change under the same name
            "items": [[item.prompt, item.seed] for item in items(section)],
            **_looked_at_with(section),
        }
    )


def _looked_at_with(section: EvalSection) -> dict[str, str | None]:
    """Return what a path or name in the section stands for today: networks, real images."""
    found: dict[str, str | None] = {}
    if networks := extractors.fingerprint(section):
        found["networks"] = networks
    if reference := section.features.reference:
        found["reference"] = storage.version_if_there(reference)
    return found
