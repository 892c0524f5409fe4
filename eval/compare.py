"""Two evaluations side by side: every figure of both, pairs of pictures, and one page of it all."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import safetensors.numpy
from PIL import Image

from eval import history
from eval.differences import Difference, columns, difference, of_column, shared
from eval.figures import Told, figures, told
from eval.history import Evaluation
from imagen import manifest, picture, storage
from imagen.errors import ImagenError, ShardError, StorageError

SAMPLES = re.compile(r"samples/[0-9a-f]{8}-(\d+)\.safetensors")
MOST_COMPARED = 1000
"""Pairs of pictures that are looked at: the first ones."""
SHOWN = 24
"""Pairs of pictures that the page shows: those that differ most."""
SIDE_PX = 64
"""Size at which pictures of different sizes are compared."""
COLUMNS = {
    "right": Told("Images that are right", "higher", True),
    "clip": Told("CLIP score of an image", "higher"),
    "consistency": Told("Difference of an image to its low-res input", "lower"),
    "nearest_distance": Told("Distance to the nearest training image", None),
}
"""What images.jsonl notes of each image."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of both."""

    key: str
    how: Told
    first: float | None
    second: float | None
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None]
    difference: Difference | None

    @property
    def verdict(self) -> str:
        """What the difference means, in words."""
        found = self.difference
        if found is None:
            return "only one has it"
        if found.by_chance is None:
            return "no interval"
        if found.by_chance:
            return "within chance"
        improved = self.how.improved(found.value)
        more = "" if improved is None else (", B is better" if improved else ", A is better")
        return f"more than chance{more}"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations and how they differ."""

    a: Evaluation
    b: Evaluation
    pairs: list[tuple[int, int]]
    """Numbers of images with the same prompt and seed."""
    rows: list[Row]


def find(place: str) -> Evaluation:
    """Return the evaluation in a folder, or the newest one of a project's `out`.

    Raises StorageError when there is none.
    """
    own = history.open_evaluation(place)
    if own is not None:
        return own
    for folder in (storage.join(place, "eval"), place):
        found = history.evaluations(folder)
        if found:
            usual = [one for one in found if not one.named]  # the others may be of any snapshots
            return (usual or found)[-1]
    raise StorageError(
        f"`{place}` is no finished evaluation, and there is none below it",
        "name a folder like runs/digits/eval/000000038400-1a2b3c4d, or the `out` of a project "
        "that `python -m eval CONFIG` has evaluated",
    )


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations. Raises ShardError when they share no image and no figure."""
    pairs = shared(a, b)
    rows = _figures(a, b) + _columns(a, b, pairs)
    if not pairs and not any(row.difference for row in rows):
        raise ShardError(
            f"`{a.folder}` and `{b.folder}` have no prompt and seed in common, and no figure",
            "evaluate both with the same eval.prompts, eval.seed and eval.count",
        )
    return Comparison(a, b, pairs, rows)


def _figures(a: Evaluation, b: Evaluation) -> list[Row]:
    mine, others = figures(a.metrics), figures(b.metrics)
    rows = []
    for key in dict.fromkeys([*mine, *others]):
        first, second = mine.get(key), others.get(key)
        found = None
        if first is not None and second is not None:
            found = difference(key, (a, first), (b, second))
        values = [None if f is None else f.value for f in (first, second)]
        spans = (first.interval if first else None, second.interval if second else None)
        rows.append(Row(key, told(key), values[0], values[1], spans, found))
    return rows


def _columns(a: Evaluation, b: Evaluation, pairs: Sequence[tuple[int, int]]) -> list[Row]:
    """Return what both noted of each image, as means over the pairs."""
    rows = []
    for name in columns(a, b):
        found = of_column(name, a, b, pairs)
        if found is not None:
            how = COLUMNS.get(name, Told(f"{name.replace('_', ' ')}, mean of pairs", None))
            first, second = (_mean(e, name, side, pairs) for side, e in enumerate((a, b)))
            rows.append(Row(f"images.{name}", how, first, second, (None, None), found))
    return rows


def _mean(one: Evaluation, name: str, side: int, pairs: Sequence[tuple[int, int]]) -> float | None:
    values = [one.images[pair[side]].get(name) for pair in pairs]
    numbers = [float(v) for v in values if isinstance(v, bool | int | float)]
    return sum(numbers) / len(numbers) if numbers else None


class Pictures:
    """The images of an evaluation by number, read a file at a time."""

    def __init__(self, one: Evaluation) -> None:
        self._one = one
        found = ((SAMPLES.fullmatch(name), name) for name in one.body["files"])
        self._files = sorted((int(match[1]), name) for match, name in found if match)
        self._read = lru_cache(maxsize=2)(self._load)

    def __call__(self, number: int) -> np.ndarray:
        """Return the last member's image, uint8 (h, w, c)."""
        before = [(start, name) for start, name in self._files if start <= number]
        if not before:
            raise ShardError(f"evaluation `{self._one.folder}` has no samples")
        start, name = before[-1]
        arrays = self._read(name)
        return arrays[self._one.members[-1]][number - start].transpose(1, 2, 0)

    def _load(self, name: str) -> dict[str, np.ndarray]:
        path = storage.join(self._one.folder, name)
        entry = self._one.body["files"][name]
        return safetensors.numpy.load(manifest.check_file(path, storage.get(path), entry))


def most_different(found: Comparison) -> list[tuple[float, int, int]]:
    """Return pairs by how much their pictures differ, most first: (difference, of a, of b).

    Root mean square of pixels in [0, 1]. Raises ImagenError when samples are missing or damaged.
    """
    ours, theirs = Pictures(found.a), Pictures(found.b)
    by_file = found.pairs[:MOST_COMPARED]
    rated = [(_apart(ours(i), theirs(j)), i, j) for i, j in by_file]
    return sorted(rated, key=lambda pair: (-pair[0], pair[1]))


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        one, other = (_at_side(image) for image in (one, other))
    squares = (one.astype(np.float64) / 255 - other.astype(np.float64) / 255) ** 2
    return float(np.sqrt(squares.mean()))


def _at_side(image: np.ndarray) -> np.ndarray:
    shown = picture.exact(image).convert("RGB")
    return np.asarray(shown.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))


def readable_pairs(found: Comparison) -> tuple[list[tuple[float, int, int]], str]:
    """Return the pairs to show, and why there are none where that is so."""
    if not found.pairs:
        return [], "They have no prompt and seed in common, so there are no pictures to set beside."
    try:
        return most_different(found)[:SHOWN], ""
    except ImagenError as err:
        return [], f"The pictures cannot be read: {err.message}"


def table(found: Comparison) -> list[str]:
    """Return the figures as lines of a text table."""
    head = ("figure", "A", "B", "B - A", "95 %", "pairs", "")
    body = [cells(row) for row in found.rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in [head, *body]]  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return what a table says of one number: title, both, difference, interval, pairs, verdict."""
    how, found = row.how, row.difference
    both = [how.text(value) for value in (row.first, row.second)]
    if found is None:
        return how.title, *both, "", "", "", row.verdict
    pairs = "" if found.pairs is None else f"{found.pairs:,}"
    return how.title, *both, how.change(found.value), how.span(found.interval), pairs, row.verdict
