"""What evaluations and trainings have left behind: a pure function of the files below `out`.

The page, comparing and publishing read it; they know no snapshots and sample nothing, but to verify
what is published.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from eval.config import EvalConfig, EvalSection
from imagen import manifest, storage
from imagen.config import parse_yaml, to_tree
from imagen.errors import ImagenError, ShardError, StorageError
from runtime import log

MANIFEST, KIND = "manifest.json", "eval"
METRICS, IMAGES, CONFIG = "metrics.json", "images.jsonl", "config.yaml"
FAILED = "failed"
SETTINGS = (
    *("prompts", "count", "seed", "guidance_scale", "steps", "sampler", "grid", "judge"),
    *("features", "clip"),
)
"""Keys of the `eval` section that decide what the figures mean: others do not break a curve."""


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation."""

    folder: str
    body: dict[str, Any]
    """Its manifest."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return storage.name(self.folder)

    @property
    def images_seen(self) -> dict[str, int]:
        """Images that each member has been trained on."""
        return self.body["images_seen"]

    @property
    def at(self) -> int:
        """Where it stands on the axis of images seen: what its folder's name begins with."""
        return int(self.name[:12])

    @property
    def members(self) -> list[str]:
        """Names of the members, in order."""
        return list(self.images_seen)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All its numbers."""
        return self._json(METRICS)

    @cached_property
    def images(self) -> list[dict[str, Any]]:
        """What is known of each image, in order; [] for evaluations that did not note it."""
        return [] if IMAGES not in self.body["files"] else list(log.parse(self.file(IMAGES)))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The keys of its `eval` section that decide what its figures mean."""
        tree = parse_yaml(self.file(CONFIG).decode(), storage.join(self.folder, CONFIG))
        section = to_tree(EvalSection()) | (tree.get("eval") or {})
        return {key: section[key] for key in SETTINGS}

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name in self.body["files"]

    def file(self, name: str) -> bytes:
        """Return a file that its manifest lists. Raises ShardError when it is not whole."""
        path = storage.join(self.folder, name)
        if not self.has(name):
            raise ShardError(f"evaluation `{self.folder}` has no {name}")
        return manifest.check_file(path, storage.get(path), self.body["files"][name])

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(self.file(name))
        except ValueError as err:
            raise ShardError(f"`{storage.join(self.folder, name)}` is damaged: {err}") from err


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
    """Finished ones, by images seen."""
    failures: list[Failure]
    runs: list[Run]

    @cached_property
    def newest(self) -> Evaluation | None:
        """The evaluation of the newest members, by today's settings if there is one of these."""
        today = _settings(self.config)
        mine = [e for e in self.evaluations if e.settings == today]
        return (mine or self.evaluations or [None])[-1]

    @cached_property
    def comparable(self) -> list[Evaluation]:
        """The evaluations that were made as the newest one was, oldest first: points of a curve."""
        if self.newest is None:
            return []
        same = [e for e in self.evaluations if e.settings == self.newest.settings]
        return [e for e in same if e.members == self.newest.members[: len(e.members)]]

    @property
    def others(self) -> list[Evaluation]:
        """The evaluations with other settings."""
        return [e for e in self.evaluations if e not in self.comparable]


def load(config: EvalConfig) -> History:
    """Return the history of a project. Raises ShardError for a finished evaluation with damage."""
    runs = [_run(config, member) for member in config.members]
    return History(config, evaluations(config.evals), list(_failures(config.evals)), runs)


def evaluations(folder: str) -> list[Evaluation]:
    """Return the finished evaluations in a folder, by images seen."""
    found = []
    for name in storage.listdir(folder):
        if not name[:12].isdigit():
            continue
        own = open_evaluation(storage.join(folder, name))
        if own is not None:
            found.append(own)
    return sorted(found, key=lambda e: e.name)


def open_evaluation(folder: str) -> Evaluation | None:
    """Return the finished evaluation in a folder, None when there is none.

    Its manifest was written last: files are checked when they are read, not looked up one by one.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return None
    try:
        body = manifest.read(path, KIND)
    except ImagenError:
        return None  # damaged, or of another format: it is evaluated again
    return Evaluation(folder, body) if {METRICS, CONFIG} <= set(body["files"]) else None


def _failures(folder: str) -> Iterator[Failure]:
    for name in storage.listdir(storage.join(folder, FAILED)):
        try:
            note = json.loads(storage.get(storage.join(folder, FAILED, name)))
            yield Failure(
                name.removesuffix(".json"), note["tries"], note["reason"], note.get("time")
            )
        except StorageError:
            continue  # it succeeded meanwhile
        except (ValueError, KeyError, TypeError):
            yield Failure(name.removesuffix(".json"), 1, "its note is damaged", None)


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


def _settings(config: EvalConfig) -> dict[str, Any]:
    section = to_tree(config.eval)
    return {key: section[key] for key in SETTINGS}
