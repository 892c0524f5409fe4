"""Which snapshots are evaluated together.

The line-up of n images has each member's newest snapshot of at most n: what there would be, had
all trainings stopped at n. There is one for every n at which a snapshot was written, so each
snapshot is part of one, and which ones there are depends on nothing but the snapshots. A member
that has no snapshot yet is left out, and so are those above it: a base alone is a line-up.
"""

from dataclasses import dataclass

from eval.config import EvalConfig
from imagen import manifest, snapshot, storage
from imagen.assembly import MANIFEST as CASCADE
from imagen.errors import CheckpointError

RUN, RUN_KIND = "run.json", "run"
"""What training writes when it is finished."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """Snapshots to evaluate together."""

    images: int
    """Most images that a member of it has seen."""
    snapshots: dict[str, str]
    """Member -> folder, from the base up."""


def lineups(config: EvalConfig) -> list[Lineup]:
    """Return all line-ups of a project, by the images seen."""
    there = {name: snapshots(config, name) for name in config.members}
    numbers = sorted({n for found in there.values() for n in found})
    chosen = [Lineup(n, _upto(there, n)) for n in numbers]
    return [lineup for lineup in chosen if lineup.snapshots]


def snapshots(config: EvalConfig, member: str) -> dict[int, str]:
    """Return a member's trained snapshots: images seen -> folder."""
    folder = storage.join(config.run_dir(member), "snapshots")
    names = [name for name in storage.listdir(folder) if name.isdecimal()]
    folders = {int(name): storage.join(folder, name) for name in names}
    return {n: own for n, own in folders.items() if n and snapshot.is_trained(own)}


def _upto(there: dict[str, dict[int, str]], most: int) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for member, found in there.items():
        reached = [n for n in found if n <= most]
        if not reached:
            break
        chosen[member] = found[max(reached)]
    return chosen


def newest(config: EvalConfig) -> Lineup:
    """Return the newest snapshot of every member. Raises CheckpointError when one has none."""
    chosen: dict[str, str] = {}
    most = 0
    for member in config.members:
        found = snapshots(config, member)
        if not found:
            raise CheckpointError(
                f"member {member} has no snapshot in "
                f"`{storage.join(config.run_dir(member), 'snapshots')}`",
                f"run `python -m train CONFIG member={member}`",
            )
        most = max(most, *found)
        chosen[member] = found[max(found)]
    return Lineup(most, chosen)


def of_cascade(folder: str) -> dict[str, str]:
    """Return the members' folders in a cascade directory. Raises CheckpointError."""
    body = manifest.read(storage.join(folder, CASCADE), "cascade", CheckpointError)
    return {name: storage.join(folder, entry["folder"]) for name, entry in body["members"].items()}


def named(config: EvalConfig, folders: list[str]) -> Lineup:
    """Return the named snapshots, the members between and below them by their newest.

    Raises CheckpointError for a folder that has no snapshot of a member of this project.
    """
    own: dict[str, str] = {}
    for folder in folders:
        body = manifest.read(storage.join(folder, snapshot.MANIFEST), "snapshot", CheckpointError)
        member = body["member"]
        if member not in config.members or member in own:
            what = "a second one" if member in own else "no member of this project"
            raise CheckpointError(f"`{folder}` is a snapshot of {member}, {what}")
        own[member] = folder
    last = max(map(list(config.members).index, own))
    chosen: dict[str, str] = {}
    for member in list(config.members)[: last + 1]:
        found = snapshots(config, member)
        if member not in own and not found:
            raise CheckpointError(
                f"member {member} has no snapshot, and none is named", "name one by --snapshot"
            )
        chosen[member] = own.get(member) or found[max(found)]
    return Lineup(_most(chosen), chosen)


def given(config: EvalConfig, cascade: str) -> Lineup:
    """Return the members of a cascade directory as a line-up. Raises CheckpointError."""
    found = of_cascade(cascade)
    if list(found) != list(config.members)[: len(found)]:
        raise CheckpointError(
            f"`{cascade}` has the members {', '.join(found)}, the config has "
            f"{', '.join(config.members)}"
        )
    return Lineup(_most(found), found)


def _most(chosen: dict[str, str]) -> int:
    paths = [storage.join(folder, snapshot.MANIFEST) for folder in chosen.values()]
    bodies = [manifest.read(path, "snapshot", CheckpointError) for path in paths]
    return max(int(body["provenance"]["images_seen"]) for body in bodies)


def finished(config: EvalConfig) -> bool:
    """Tell whether the trainings of all members have come to their end."""
    paths = [storage.join(config.run_dir(name), RUN) for name in config.members]
    return all(manifest.read_if_complete(path, RUN_KIND) is not None for path in paths)
