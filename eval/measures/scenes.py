"""Pictures of shapes, judged attribute by attribute: what of its caption does each show?

Combinations of colour and shape that no training caption has are told apart: a model that draws
them has composed what it saw separately.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eval.measures import intervals, shares
from eval.measures.shuffle import partners
from eval.prompts import Item
from imagen.data.shape_check import Verdicts, compare, find
from imagen.data.shapes import Scene, parse
from imagen.errors import ConfigError

ATTRIBUTES = ("all_right", "count", "colour", "shape", "size", "binding", "relation")
Pairs = frozenset[tuple[str, str]]


def pairs_of(captions: Iterable[str]) -> Pairs:
    """Return the (colour, shape) pairs that captions speak of; other captions speak of none."""
    found: set[tuple[str, str]] = set()
    for caption in set(captions):
        try:
            found.update((thing.colour, thing.shape) for thing in parse(caption).things)
        except ValueError:
            continue
    return frozenset(found)


def scene_of(prompt: str) -> Scene:
    """Return what a prompt says. Raises ConfigError when it speaks of no shapes."""
    try:
        return parse(prompt)
    except ValueError as err:
        raise ConfigError(
            f"the judge of shapes was given the prompt {prompt!r}",
            "set eval.judge=none for data that is not of shapes",
        ) from err


class Scenes:
    """Collects the verdicts on all final images, block by block."""

    def __init__(self, items: Sequence[Item], trained: Pairs) -> None:
        prompts = [item.prompt for item in items]
        self._scenes = {prompt: scene_of(prompt) for prompt in set(prompts)}
        self._prompts, self._others = prompts, partners(prompts)
        self._new = np.array([self._is_new(prompt, trained) for prompt in prompts], bool)
        self._right: list[Verdicts] = []
        self._shuffled: list[bool] = []
        self.seen: list[str] = []
        """What each image shows, as a person reads it."""

    def _is_new(self, prompt: str, trained: Pairs) -> bool:
        return any((t.colour, t.shape) not in trained for t in self._scenes[prompt].things)

    def see(self, images: Sequence[np.ndarray]) -> None:
        """Judge the next images."""
        for image in images:
            at = len(self._right)
            found = find(image)
            self._right.append(compare(found, self._scenes[self._prompts[at]]))
            self.seen.append(" + ".join(str(one.thing) for one in found) or "nothing")
            if self._others is not None:
                other = self._scenes[self._prompts[self._others[at]]]
                self._shuffled.append(compare(found, other).all_right)

    def columns(self) -> dict[str, list[Any]]:
        """Return what images.jsonl says of each image."""
        return {
            "right": [verdict.all_right for verdict in self._right],
            "seen": self.seen,
            "heldout": self._new.tolist(),
        }

    def body(self) -> dict[str, Any]:
        """Return the `shapes` section of metrics.json."""
        body = attributes(self._right)
        for name, mask in (("heldout", self._new), ("seen", ~self._new)):
            if mask.any():
                body[name] = attributes([self._right[i] for i in np.flatnonzero(mask)])
        if self._others is not None:
            body["text_use"] = _text_use([v.all_right for v in self._right], self._shuffled)
        return body


def _text_use(right: Sequence[bool], wrong: Sequence[bool]) -> dict[str, Any]:
    """Return how often images are right, under other prompts too, and the difference."""
    n = len(right)
    before, after = sum(wrong) / n, sum(right) / n
    spans = [shares.wilson(sum(hits), n) for hits in (wrong, right)]
    apart = intervals.apart(before, spans[0], after, spans[1])
    return {
        "right_prompt": shares.share(sum(right), n),
        "shuffled_prompt": shares.share(sum(wrong), n),
        "gap": intervals.figure(after - before, apart, n),
    }


def attributes(verdicts: Sequence[Verdicts]) -> dict[str, Any]:
    """Return the share of images that show each attribute right."""
    body = {}
    for name in ATTRIBUTES:
        found = [value for v in verdicts if (value := getattr(v, name)) is not None]
        if found:
            body[name] = shares.share(sum(found), len(found))
    return body
