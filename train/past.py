"""What a start knows of those before it, and what its own checkpoints tell of them all."""

from typing import Any

from train import rundir
from train.job import Job


class Past:
    """The recipes of a run so far, and the changes of its identity that were asked for."""

    def __init__(
        self, job: Job, number: int, meta: dict[str, Any], images_seen: int, changes: list[str]
    ) -> None:
        """`meta`: of the checkpoint that this start goes on from; `changes`: since then."""
        self.number = number
        """Of this start, in its launch."""
        recipe = rundir.recipe(job.config, job.member)
        texts = [*meta.get("init_from", []), job.init_from, job.train.init_from]
        self.init_from = list(dict.fromkeys(text for text in texts if text))
        """What the snapshot that the run began from is called in configs."""
        earlier = rundir.known_recipes(meta.get("recipes", []))
        self.recipes = rundir.recipes(earlier, images_seen, recipe)
        self.changes = list(meta.get("identity_changes", []))
        if changes:
            self.changes.append({"from": images_seen, "differences": changes})

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of now."""
        return self.recipes[-1]["recipe"]

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint keeps for the starts after it."""
        changes = {"identity_changes": self.changes} if self.changes else {}
        return {"recipes": self.recipes, **changes, **self.asked()}

    def asked(self) -> dict[str, Any]:
        """Return what the config called the snapshot that the run began from; {} for none."""
        return {"init_from": self.init_from} if self.init_from else {}

    def earlier(self) -> dict[str, Any]:
        """Return what was otherwise, for provenance; {} when nothing was."""
        *earlier, _ = self.recipes
        recipes = {"earlier_recipes": earlier} if earlier else {}
        return recipes | ({"identity_changes": self.changes} if self.changes else {})

    def recipe_changed(self, images_seen: int) -> list[str]:
        """Return what the recipe of this start does otherwise than the one before."""
        *earlier, last = self.recipes
        if not earlier or last["from"] != images_seen:
            return []
        return rundir.differences(earlier[-1]["recipe"], last["recipe"])

    def identity_changed(self, images_seen: int) -> list[str]:
        """Return what of the identity this start has changed."""
        last = self.changes[-1] if self.changes else None
        return last["differences"] if last is not None and last["from"] == images_seen else []
