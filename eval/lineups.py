"""Which snapshots are evaluated together.

The line-up of n images has each member's newest snapshot of at most n: what there would be, had
all trainings stopped at n. There is one for every n at which a snapshot was written, so each
snapshot is part of one, and which ones there are depends on nothing but the snapshots. A member
that has no snapshot yet is left out, and so are those above it: a base alone is a line-up.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eval.config import EvalConfig
from imagen import manifest, snapshot, storage
from imagen.assembly import MANIFEST as CASCADE
from imagen.errors import CheckpointError

RUN, RUN_KIND = "run.json", "run"
"""What training writes when it is finished."""
AT_ONCE = 8
"""Snapshots that are looked at at once: a bucket takes its time for each answer."""

Body = dict[str, Any]
"""Manifest of a snapshot."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """Snapshots to evaluate together, from the base up."""

    snapshots: dict[str, str]
    """Member -> folder."""
    bodies: dict[str, Body]
    """Member -> manifest of its snapshot."""
    named: bool = False
    """A person chose it: it is no point of a curve, and not what there is to publish."""

    @property
    def images(self) -> int:
        """Most images that a member of it has seen."""
        return max(int(body["provenance"]["images_seen"]) for body in self.bodies.values())


def lineups(config: EvalConfig) -> list[Lineup]:
    """Return all line-ups of a project, by the images seen."""
    there = {name: snapshots(config, name) for name in config.members}
    numbers = sorted({n for found in there.values() for n in found})
    chosen = [_upto(there, n) for n in numbers]
    return [lineup for lineup in chosen if lineup.snapshots]


def snapshots(config: EvalConfig, member: str) -> dict[int, tuple[str, Body]]:
    """Return a member's trained snapshots: images seen -> folder and manifest."""
    folder = storage.join(config.run_dir(member), "snapshots")
    names = [name for name in storage.listdir(folder) if name.isdecimal()]
    folders = [storage.join(folder, name) for name in names if int(name)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        bodies = list(pool.map(_trained, folders))
    pairs = zip(folders, bodies, strict=True)
    return {int(storage.name(own)): (own, body) for own, body in pairs if body is not None}


def _trained(folder: str) -> Body | None:
    """Return the manifest of a complete snapshot of a network that has seen images, else None."""
    path = storage.join(folder, snapshot.MANIFEST)
    body = manifest.read_if_complete(path, snapshot.KIND, storage.sizes(folder))
    return body if body and body["provenance"].get("images_seen") != 0 else None


def _upto(there: dict[str, dict[int, tuple[str, Body]]], most: int) -> Lineup:
    chosen: dict[str, tuple[str, Body]] = {}
    for member, found in there.items():
        reached = [n for n in found if n <= most]
        if not reached:
            break
        chosen[member] = found[max(reached)]
    return _lineup(chosen)


def _lineup(chosen: dict[str, tuple[str, Body]], named: bool = False) -> Lineup:
    folders = {name: folder for name, (folder, _) in chosen.items()}
    return Lineup(folders, {name: body for name, (_, body) in chosen.items()}, named)


def newest(config: EvalConfig) -> Lineup:
    """Return the newest snapshot of every member. Raises CheckpointError when one has none."""
    chosen: dict[str, tuple[str, Body]] = {}
    for member in config.members:
        found = snapshots(config, member)
        if not found:
            raise CheckpointError(
                f"member {member} has no snapshot in "
                f"`{storage.join(config.run_dir(member), 'snapshots')}`",
                f"run `python -m train CONFIG member={member}`",
            )
        chosen[member] = found[max(found)]
    return _lineup(chosen)


def of_cascade(folder: str) -> dict[str, str]:
    """Return the members' folders in a cascade directory. Raises CheckpointError."""
    body = manifest.read(storage.join(folder, CASCADE), "cascade", CheckpointError)
    return {name: storage.join(folder, entry["folder"]) for name, entry in body["members"].items()}


def named(config: EvalConfig, folders: list[str]) -> Lineup:
    """Return the named snapshots, the members between and below them by their newest.

    Raises CheckpointError for a folder that has no snapshot of a member of this project.
    """
    own: dict[str, tuple[str, Body]] = {}
    for folder in folders:
        body = _read(folder)
        member = body["member"]
        if member not in config.members or member in own:
            what = "a second one" if member in own else "no member of this project"
            raise CheckpointError(f"`{folder}` is a snapshot of {member}, {what}")
        own[member] = (folder, body)
    last = max(map(list(config.members).index, own))
    chosen: dict[str, tuple[str, Body]] = {}
    for member in list(config.members)[: last + 1]:
        found = {} if member in own else snapshots(config, member)
        if member not in own and not found:
            raise CheckpointError(
                f"member {member} has no snapshot, and none is named", "name one by --snapshot"
            )
        chosen[member] = own[member] if member in own else found[max(found)]
    return _named(config, chosen)


def given(config: EvalConfig, cascade: str) -> Lineup:
    """Return the members of a cascade directory as a line-up. Raises CheckpointError."""
    found = of_cascade(cascade)
    if list(found) != list(config.members)[: len(found)]:
        raise CheckpointError(
            f"`{cascade}` has the members {', '.join(found)}, the config has "
            f"{', '.join(config.members)}"
        )
    return _named(config, {name: (folder, _read(folder)) for name, folder in found.items()})


def _named(config: EvalConfig, chosen: dict[str, tuple[str, Body]]) -> Lineup:
    """Return named snapshots as a line-up; as one of the project's own where they are that."""
    own = any(lineup.bodies == _lineup(chosen).bodies for lineup in lineups(config))
    return _lineup(chosen, named=not own)


def _read(folder: str) -> Body:
    return manifest.read(storage.join(folder, snapshot.MANIFEST), snapshot.KIND, CheckpointError)


def finished(config: EvalConfig) -> bool:
    """Tell whether the trainings of all members have come to their end."""
    paths = [storage.join(config.run_dir(name), RUN) for name in config.members]
    return all(manifest.read_if_complete(path, RUN_KIND) is not None for path in paths)
