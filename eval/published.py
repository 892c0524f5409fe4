"""The publish stage: keeps the place that the config names at the cascade that the config chooses.

`python -m eval publish CONFIG` does it. Without a DEST on the command line a cascade that this run
has evaluated gives way; whatever else lies there is refused, also what another run of the same name
has published.
"""

import json
from collections.abc import Mapping
from typing import Any

from eval import history
from eval.card import About
from eval.config import EvalConfig, PublishConfig
from eval.history import Evaluation, History
from eval.publish import METRICS, SUMS, Chosen, beside_members, choose, refuse
from imagen import assembly, manifest, snapshot, storage
from imagen.errors import CheckpointError, ImagenError, StorageError
from imagen.project import absolute
from runtime.state import StageState, Status

STAGE = "publish"


def about(section: PublishConfig) -> About:
    """Return what a card says that no file tells."""
    return About(
        weights_license=section.weights_license,
        data_license=section.data_license,
        layout=section.layout,
    )


def refuse_others(found: History, chosen: Chosen, which: str) -> None:
    """Raise StorageError when something lies at the place that may not give way.

    A cascade of this run's evaluations may: its fingerprint is of all weights, so that no other run
    has the same. Not of those whose snapshots a person chose, who may have taken them from another
    run. Where the newest is asked for (`which`), it must not be the one with fewer images.
    """
    dest = found.config.published
    there = _cascade_at(dest)
    mine = [one for one in found.evaluations if not one.named]
    seen = [one.at for one in mine if one.body["cascade"] == there]
    if not seen:
        refuse(dest, chosen, overwrite=False)
    elif which == "newest" and max(seen) > chosen.evaluation.at:
        raise StorageError(
            f"`{dest}` holds the cascade of {max(seen):,} images, the newest evaluation is of "
            f"{chosen.evaluation.at:,}",
            "name the evaluation with --evaluation, or say --overwrite to replace it",
        )


def _cascade_at(dest: str) -> str | None:
    """Return the fingerprint of the cascade that is published, None: there is none or who knows."""
    there, damage = _there(dest)
    if there is not None:
        return there["fingerprint"]
    data = storage.get_if_there(storage.join(dest, METRICS)) if damage else None
    try:
        return json.loads(data or b"{}").get("cascade")
    except (ValueError, AttributeError):
        return None


def state(config: EvalConfig) -> StageState:
    """Return whether what is published is what the config chooses. Touches nothing."""
    config = absolute(config)
    status, detail = _status(config, config.publish or PublishConfig())
    return StageState(stage=STAGE, status=status, detail=detail, outputs=(config.published,))


def _status(config: EvalConfig, section: PublishConfig) -> tuple[Status, str]:
    dest = config.published
    there, damage = _there(dest)
    begun = there is not None or bool(damage)
    try:
        evaluation = choose(history.load(config), section.evaluation, section.by or None)
    except ImagenError as err:
        return ("stale" if begun else "missing"), err.message
    if there is None:
        if damage:
            return "partial", damage
        own = any(assembly.MEMBER_FOLDER.fullmatch(name) for name in storage.listdir(dest))
        return ("partial", "begun") if own else ("missing", f"nothing in {dest}")
    if there["fingerprint"] != evaluation.body["cascade"]:
        wanted = f"evaluation {evaluation.name} is of another one, {evaluation.body['cascade']}"
        return "stale", f"cascade {there['fingerprint']} is there, {wanted}"
    lacking = [name for name, entry in there["members"].items() if not _whole(dest, entry)]
    if lacking:
        return "partial", f"files of {' and '.join(lacking)} are missing in {dest}"
    old = _outdated(dest, evaluation, there, about(section))
    if old:
        return "stale", f"{', '.join(old)}: of another evaluation, licence or version"
    return "done", f"cascade {there['fingerprint']} of evaluation {evaluation.name}"


def _there(dest: str) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest of the published cascade, else None, and what is wrong with it."""
    path = storage.join(dest, assembly.MANIFEST)
    if not storage.exists(path):
        return None, ""
    try:
        return manifest.read(path, "cascade", CheckpointError), ""
    except StorageError:
        raise
    except ImagenError as err:
        return None, err.message


def _whole(dest: str, entry: Mapping[str, Any]) -> bool:
    path = storage.join(dest, entry["folder"], snapshot.MANIFEST)
    return manifest.read_if_complete(path, snapshot.KIND) is not None


def _outdated(dest: str, evaluation: Evaluation, body: Mapping[str, Any], said: About) -> list[str]:
    """Return the files beside the members that publishing would write anew."""
    try:
        wanted = beside_members(evaluation, body, _member_sums(dest), said)
    except ImagenError as err:
        return [err.message]
    found = {name: storage.get_if_there(storage.join(dest, name)) for name in wanted}
    return [name for name, data in wanted.items() if found[name] != data]


def _member_sums(dest: str) -> dict[str, str]:
    """Return the SHA-256 of the members' files as the list of checksums has them."""
    text = (storage.get_if_there(storage.join(dest, SUMS)) or b"").decode(errors="replace")
    pairs = [line.split("  ", 1) for line in text.splitlines() if "  " in line]
    return {name: digest for digest, name in pairs if "/" in name}
