"""Finished evaluations: their folders, read when they are asked, checked by their manifests."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from eval.config import EvalSection
from imagen import manifest, storage
from imagen.config import parse_yaml, to_tree
from imagen.errors import ImagenError, ShardError, StorageError
from runtime import log

MANIFEST, KIND = "manifest.json", "eval"
METRICS, IMAGES, CONFIG = "metrics.json", "images.jsonl", "config.yaml"
SETTINGS = (
    *("prompts", "count", "seed", "guidance_scale", "steps", "sampler", "grid", "judge"),
    *("features", "clip"),
)
"""Keys of the `eval` section that decide what the figures mean: others do not break a curve."""
SWEEPS = "sweeps"
AT_ONCE = 8
"""Evaluations that are read at once: a bucket takes its time for each answer."""


class Damaged(ShardError):
    """A file of a finished evaluation is not what the manifest says."""

    folder, key = "", ("", "")
    """Of the evaluation."""

    @classmethod
    def of(cls, one: "Evaluation", err: ImagenError) -> "Damaged":
        """Return what was found in an evaluation."""
        found = cls(err.message, err.hint)
        found.folder, found.key = one.folder, one.key
        return found


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation."""

    folder: str
    body: dict[str, Any]
    """Its manifest."""
    _read: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Files that all evaluations are asked for."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return storage.name(self.folder)

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others, and from another try in the same folder."""
        return self.name, self.body["fingerprint"]

    @property
    def images_seen(self) -> dict[str, int]:
        """Images that each member has been trained on."""
        return self.body["images_seen"]

    @property
    def at(self) -> int:
        """Where it stands on the axis of images seen: the most that a member has seen."""
        return max(self.images_seen.values())

    @property
    def named(self) -> bool:
        """Whether a person chose its snapshots: no point of a curve."""
        return bool(self.body.get("named", False))

    @property
    def time(self) -> float:
        """When it finished, in seconds since 1970; 0 for those that did not note it."""
        return float(self.body.get("time", 0.0))

    @property
    def order(self) -> tuple[int, int, float, int, str]:
        """What says which is newer: more members, more images, then what finished later."""
        seen = self.images_seen.values()
        return len(seen), self.at, self.time, sum(seen), self.name

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
        """Its members, and the keys of its `eval` section that say what is in it."""
        tree = parse_yaml(self.file(CONFIG).decode(), storage.join(self.folder, CONFIG))
        section = to_tree(EvalSection()) | (tree.get("eval") or {})
        return {"members": self.members, **meaning(section), SWEEPS: section[SWEEPS]}

    @property
    def meaning(self) -> dict[str, Any]:
        """The settings that decide what its figures mean."""
        return meaning(self.settings)

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name in self.body["files"]

    def file(self, name: str) -> bytes:
        """Return a file that its manifest lists. Raises Damaged when it is not whole."""
        if name in self._read:
            return self._read[name]
        path = storage.join(self.folder, name)
        if not self.has(name):
            raise ShardError(f"evaluation `{self.folder}` has no {name}")
        try:
            data = manifest.check_file(path, storage.get(path), self.body["files"][name])
        except ShardError as err:
            raise Damaged.of(self, err) from err
        except StorageError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                raise Damaged.of(self, err) from err
            raise
        if name in (METRICS, CONFIG):
            self._read[name] = data
        return data

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(self.file(name))
        except ValueError as err:
            found = ShardError(f"`{storage.join(self.folder, name)}` is damaged: {err}")
            raise Damaged.of(self, found) from err


def evaluations(folder: str) -> list[Evaluation]:
    """Return the finished evaluations in a folder, the newest last. Reads manifests only."""
    names = [name for name in storage.listdir(folder) if name[:12].isdigit()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda name: open_evaluation(storage.join(folder, name)), names))
    return sorted((one for one in found if one is not None), key=lambda e: e.order)


def open_evaluation(folder: str) -> Evaluation | None:
    """Return the finished evaluation in a folder, None when there is none.

    Its manifest was written last: files are checked when they are read, not looked up one by one.
    """
    try:
        body = manifest.read(storage.join(folder, MANIFEST), KIND)
    except ShardError:
        return None  # missing, damaged, or of another format: it is evaluated again
    whole = {METRICS, CONFIG} <= set(body.get("files", ())) and body.get("images_seen")
    return Evaluation(folder, body) if whole else None


def meaning(section: dict[str, Any]) -> dict[str, Any]:
    """Return what of an `eval` section decides what the figures mean."""
    return {key: section[key] for key in SETTINGS}
