"""What evaluations and trainings have left behind: a pure function of the files below `out`.

The page, comparing and publishing read it; they know no snapshots and sample nothing, but to verify
what is published.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from eval import inputs, lineups
from eval.config import EvalConfig
from eval.finished import AT_ONCE, CONFIG, METRICS, Damaged, evaluations, meaning
from eval.finished import Evaluation as Evaluation
from eval.finished import open_evaluation as open_evaluation
from imagen import manifest, storage
from imagen.config import to_tree
from imagen.errors import CheckpointError, ConfigError, ImagenError
from runtime import log

FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Failure:
    """An evaluation that was tried and did not come to its end."""

    name: str
    tries: int
    reason: str
    time: float | None


@dataclass(frozen=True)
class Run:
    """What the training of one member has told."""

    member: str
    events: list[dict[str, Any]]
    """Lines of log.jsonl."""
    validations: list[dict[str, Any]] = field(default_factory=list)
    """Results, by images seen."""


@dataclass(frozen=True)
class History:
    """All that there is to see of a project."""

    config: EvalConfig
    evaluations: list[Evaluation]
    """Finished ones whose numbers can be read, the newest last."""
    failures: list[Failure]
    runs: list[Run]
    damaged: list[Damaged] = field(default_factory=list)
    """Finished evaluations that are left out."""
    wanted: str | None = None
    """Fingerprint that the evaluation of the newest snapshots by today's section has."""

    @cached_property
    def usual(self) -> list[Evaluation]:
        """The evaluations of line-ups: not those whose snapshots a person chose."""
        return [e for e in self.evaluations if not e.named or self._is_wanted(e)]

    def _is_wanted(self, one: Evaluation) -> bool:
        return one.body["fingerprint"] == self.wanted

    @cached_property
    def newest(self) -> Evaluation | None:
        """The evaluation that the page is about, chosen ones only where there are no others.

        Of the newest snapshots by today's section, else the newest with today's settings, else the
        newest.
        """
        today = meaning(to_tree(self.config.eval))
        wanted = [e for e in self.usual if self._is_wanted(e)]
        mine = [e for e in self.usual if e.meaning == today]
        return (wanted or mine or self.usual or self.evaluations or [None])[-1]

    @cached_property
    def comparable(self) -> list[Evaluation]:
        """The evaluations that were made as the newest one was, oldest first: points of a curve.

        One for each number of images: what was evaluated again counts as it was the last time.
        """
        if (newest := self.newest) is None:
            return []
        same = [e for e in self.usual if e.members == newest.members]
        points = {e.at: e for e in [*same, newest] if e.meaning == newest.meaning}
        return [points[at] for at in sorted(points)]

    @property
    def others(self) -> list[Evaluation]:
        """The evaluations that are on no curve."""
        shown = {e.folder for e in self.comparable}
        return [e for e in self.evaluations if e.folder not in shown]

    def without(self, damage: Damaged) -> "History":
        """Return it without an evaluation that was found to be damaged."""
        left = [e for e in self.evaluations if e.folder != damage.folder]
        return replace(self, evaluations=left, damaged=[*self.damaged, damage])


def load(config: EvalConfig) -> History:
    """Return the history of a project; evaluations whose numbers are damaged are told apart."""
    found = evaluations(config.evals)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        damaged = [damage for damage in pool.map(_damage, found) if damage is not None]
    failed = list(_failures(config.evals, {one.name for one in found}))
    gone = {damage.folder for damage in damaged}
    whole = [one for one in found if one.folder not in gone]
    runs = [_run(config, member) for member in config.members]
    return History(config, whole, failed, runs, damaged, _wanted(config))


def _damage(one: Evaluation) -> Damaged | None:
    """Read what every evaluation is asked for; return what is wrong with it."""
    try:
        one.file(METRICS)
        one.file(CONFIG)
    except Damaged as err:
        return err
    return None


def _wanted(config: EvalConfig) -> str | None:
    """Return the fingerprint of the evaluation of the newest snapshots, if there can be one."""
    try:
        found = lineups.lineups(config)
        return inputs.gather(config, found[-1]).fingerprint if found else None
    except (CheckpointError, ConfigError):
        return None  # they do not fit each other, or a file of prompts is gone


def _failures(folder: str, finished: set[str]) -> Iterator[Failure]:
    for file in storage.listdir(storage.join(folder, FAILED)):
        name = file.removesuffix(".json")
        if name in finished:
            continue  # it succeeded meanwhile
        data = storage.get_if_there(storage.join(folder, FAILED, file))
        if data is None:
            continue  # just now
        try:
            note = json.loads(data)
            yield Failure(name, note["tries"], note["reason"], note.get("time"))
        except (ValueError, KeyError, TypeError):
            yield Failure(name, 1, "its note is damaged", None)


def _run(config: EvalConfig, member: str) -> Run:
    folder = config.run_dir(member)
    events = log.read(storage.join(folder, "log.jsonl"))
    return Run(member, events, list(_validations(storage.join(folder, "validation"))))


def _validations(folder: str) -> Iterator[dict[str, Any]]:
    for name in storage.listdir(folder):
        if not name.removesuffix(".json").isdigit() or not name.endswith(".json"):
            continue
        try:
            yield manifest.read(storage.join(folder, name), "validation")
        except ImagenError:
            continue  # deleted or being made again
