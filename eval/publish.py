"""Publishing: choose an evaluated cascade, prove that it is the one, and copy it with its card.

```
<dest>/README.md, grid.png, metrics.json   what it is and how it does
<dest>/SHA256SUMS                          of all files but the manifest: `sha256sum -c` checks them
<dest>/<member>-<fingerprint>/             the members
<dest>/cascade.json                        manifest, written last
```
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import card
from eval.compare import Pictures
from eval.config import EvalConfig
from eval.figures import figures, headlines, told
from eval.history import Evaluation, History
from imagen import assembly, manifest, snapshot, storage
from imagen import config as configs
from imagen.errors import CheckpointError, ConfigError, ImagenError, StorageError

TOLERANCE = 2
"""Levels of 255 by which the sampled image may differ from the stored one: another machine."""
SUMS, README, METRICS, GRID = "SHA256SUMS", "README.md", "metrics.json", "grid.png"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is published: an evaluation, and the snapshots that it is of."""

    evaluation: Evaluation
    config: EvalConfig
    """What it was evaluated with."""
    snapshots: dict[str, str]
    """Member -> folder."""
    body: dict[str, Any]
    """What the cascade's manifest will say, but for its fingerprint."""


def choose(found: History, which: str, by: str | None = None) -> Evaluation:
    """Return the evaluation to publish: newest, best (`by` a figure) or a name.

    Raises ConfigError or StorageError when there is none.
    """
    if not (found.evaluations or found.damaged):
        raise StorageError(
            f"`{found.config.evals}` has no finished evaluation to publish",
            "run `python -m eval CONFIG`",
        )
    if which not in ("newest", "best"):
        named = [one for one in found.evaluations if one.name == which]
        for damage in found.damaged:
            if damage.key[0] == which:
                raise damage
        if not named:
            names = ", ".join(one.name for one in found.evaluations)
            raise ConfigError(f"there is no evaluation {which!r}", f"there are: {names}")
        return named[0]
    if found.damaged:
        raise found.damaged[0]  # it may be the newest or the best
    whole = [e for e in found.comparable if e in found.usual]
    whole = [e for e in whole if e.body.get("complete_cascade", True)]
    if not whole:
        raise StorageError(
            "no finished evaluation has all members of the project, but of chosen snapshots",
            "train the others, or name one of those below with --evaluation: "
            + ", ".join(one.name for one in found.evaluations),
        )
    if which == "best":
        return _best(whole, by)
    return found.newest if found.newest in whole else whole[-1]


def _best(whole: list[Evaluation], by: str | None) -> Evaluation:
    """Return the evaluation with the best value of a figure, the newest of equals."""
    known = {key for one in whole for key in figures(one.metrics)}
    judging = [key for key in sorted(known) if told(key).better is not None]
    key = by or next(iter(headlines(judging)), None)
    if key is None or key not in judging:
        what = "nothing says which is best" if key is None else f"{key!r} cannot say which is best"
        raise ConfigError(what, f"--by takes: {', '.join(judging) or 'nothing here'}")
    values = [(figures(one.metrics).get(key), one) for one in whole]
    sign = 1.0 if told(key).better == "higher" else -1.0
    rated = [
        (sign * f.value, one.at, one) for f, one in values if f is not None and f.value is not None
    ]
    return max(rated, key=lambda row: row[:2])[2]


def prepare(found: History, evaluation: Evaluation) -> Chosen:
    """Find the snapshots that an evaluation is of. Raises CheckpointError when one is gone."""
    from imagen.text.encoder import encoder_fingerprint

    where = storage.join(evaluation.folder, "config.yaml")
    tree = configs.parse_yaml(evaluation.file("config.yaml").decode(), where)
    config = configs.build(EvalConfig, tree, where)
    options = [list(_candidates(found.config, evaluation, name)) for name in evaluation.members]
    for folders in itertools.product(*options):
        snapshots = dict(zip(evaluation.members, folders, strict=True))
        try:
            body = assembly.describe(snapshots, config.text, encoder_fingerprint(config.text))
        except CheckpointError:
            continue  # not of this cascade
        if manifest.fingerprint(body) == evaluation.body["cascade"]:
            return Chosen(evaluation, config, snapshots, body)
    seen = ", ".join(f"{name} {count:,}" for name, count in evaluation.images_seen.items())
    raise CheckpointError(
        f"the snapshots that evaluation {evaluation.name} is of ({seen} images) are gone",
        "keep more of them (train.<member>.keep_snapshots, milestone_every), or publish another "
        "evaluation",
    )


def _candidates(config: EvalConfig, evaluation: Evaluation, member: str) -> Iterator[str]:
    """Yield folders that may hold the snapshot of a member: of the run, or in the cascade."""
    run, prefix = config.run_dir(member), f"{evaluation.images_seen[member]:012d}"
    places = [(storage.join(run, "snapshots"), prefix), (storage.join(run, "ema"), prefix)]
    for folder, start in [*places, (config.cascade, f"{member}-")]:
        for name in storage.listdir(folder):
            own = storage.join(folder, name)
            if name.startswith(start) and storage.exists(storage.join(own, snapshot.MANIFEST)):
                yield own


def verify(chosen: Chosen) -> int:
    """Load the cascade, sample the first image again; return by how many of 255 levels it differs.

    Raises CheckpointError when a file is damaged or the image is another one.
    """
    import torch

    from imagen.cascade import Cascade
    from imagen.data.images import to_uint8

    evaluation = chosen.evaluation
    row = evaluation.images[0] if evaluation.images else None
    if row is None:
        raise CheckpointError(
            f"evaluation {evaluation.name} lists no image to check the cascade with"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cascade = Cascade.of_snapshots(chosen.snapshots, chosen.config.text, device)
    made = cascade.sample([row["prompt"]], [row["seed"]], chosen.config.eval.options)
    image = to_uint8(list(made.values())[-1])[0].permute(1, 2, 0).cpu().numpy()
    stored = Pictures(evaluation)(0)
    apart = int(np.abs(image.astype(int) - stored.astype(int)).max())
    if apart > TOLERANCE:
        raise CheckpointError(
            f"the cascade draws {row['prompt']!r} with seed {row['seed']} otherwise than "
            f"evaluation {evaluation.name} did: by {apart} of 255 levels, {TOLERANCE} are allowed",
            "evaluate again with this version of the code: `python -m eval CONFIG`",
        )
    return apart


def refuse(dest: str, chosen: Chosen, overwrite: bool) -> None:
    """Raise StorageError when something else lies at `dest`, unless it may be replaced."""
    path = storage.join(dest, assembly.MANIFEST)
    if overwrite:
        return
    if not storage.exists(path):
        foreign = [name for name in storage.listdir(dest) if not _ours(name)]
        if foreign:
            raise StorageError(
                f"`{dest}` is no cascade, but has files: {', '.join(foreign[:3])}",
                "choose another folder, or say --overwrite",
            )
        return
    there = manifest.read(path, "cascade", CheckpointError)["fingerprint"]
    if there != manifest.fingerprint(chosen.body):
        raise StorageError(
            f"`{dest}` holds another cascade, {there}",
            "choose another folder, or say --overwrite to replace it",
        )


def _ours(name: str) -> bool:
    own = (SUMS, README, METRICS, GRID)
    return name in own or assembly.MEMBER_FOLDER.fullmatch(name) is not None


def publish(dest: str, chosen: Chosen, about: card.About) -> list[str]:
    """Copy a cascade with its card; return the names of the files written beside the members.

    What another cascade has at `dest` is replaced, its manifest first. Publishing the same again
    checks everything and writes nothing.
    """
    path = storage.join(dest, assembly.MANIFEST)
    if _fingerprint(path) not in (None, manifest.fingerprint(chosen.body)):
        storage.delete(path)
    written: list[str] = []
    done = False

    def beside() -> None:
        nonlocal done
        written.extend(_put_beside(dest, chosen, about))
        done = True

    text, encoder = chosen.config.text, chosen.body["encoder_fingerprint"]
    assembly.assemble(dest, chosen.snapshots, text, encoder, beside)
    if not done:  # the members were there
        beside()
    return written


def _fingerprint(path: str) -> str | None:
    if not storage.exists(path):
        return None
    try:
        return manifest.read(path, "cascade")["fingerprint"]
    except ImagenError:
        return ""  # damaged


def _put_beside(dest: str, chosen: Chosen, about: card.About) -> list[str]:
    """Write the files beside the members that are not there as they should be; return names."""
    sums = dict(_member_sums(dest, chosen.body["members"]))
    written = []
    for name, data in beside_members(chosen.evaluation, chosen.body, sums, about).items():
        path = storage.join(dest, name)
        if not storage.exists(path) or storage.get(path) != data:
            storage.put(path, data)
            written.append(name)
    return written


def beside_members(
    evaluation: Evaluation,
    body: Mapping[str, Any],
    members: Mapping[str, str],
    about: card.About,
) -> dict[str, bytes]:
    """Return the files that lie beside the members. `members`: SHA-256 of the members' files."""
    files = {METRICS: evaluation.file(METRICS)}
    if evaluation.has(GRID):
        files[GRID] = evaluation.file(GRID)
    files[README] = card.card(evaluation, body, members, about).encode()
    sums = {**members, **{n: hashlib.sha256(data).hexdigest() for n, data in files.items()}}
    files[SUMS] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    return files


def _member_sums(dest: str, members: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each member's files at `dest` with their SHA-256, read back and checked."""
    for entry in members.values():
        for file, listed in entry["files"].items():
            name = storage.join(entry["folder"], file)
            path = storage.join(dest, name)
            data = manifest.check_file(path, storage.get(path), listed, CheckpointError)
            yield name, hashlib.sha256(data).hexdigest()
        name = storage.join(entry["folder"], snapshot.MANIFEST)
        yield name, hashlib.sha256(storage.get(storage.join(dest, name))).hexdigest()
