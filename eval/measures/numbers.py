"""Pictures of digits, judged by a classifier that has learnt from the training images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.judge import GATE, Judge
from eval.measures import shares
from eval.prompts import Item
from eval.reference import Reference
from imagen.data import digits


class Numbers:
    """Collects the verdicts on the images of all members, block by block."""

    def __init__(self, items: Sequence[Item], judge: Judge) -> None:
        self._judge, self._items = judge, items
        self._wanted = np.array([digits.digit_of(item.prompt) for item in items])
        self._seen: dict[str, list[np.ndarray]] = {}

    def see(self, block: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Judge the next images of each member."""
        for name, images in block.items():
            self._seen.setdefault(name, []).append(self._judge.verdicts(images)[0])

    def verdicts(self) -> np.ndarray:
        """Return the digit of each final image, -1 where the judge is not sure."""
        return np.concatenate(list(self._seen.values())[-1])

    def columns(self) -> dict[str, list[Any]]:
        """Return what images.jsonl says of each image."""
        seen = self.verdicts()
        return {
            "right": (seen == self._wanted).tolist(),
            "seen": [None if digit < 0 else digit for digit in seen.tolist()],
        }

    def body(self) -> dict[str, Any]:
        """Return the sections of metrics.json that are about digits, but for the judge's own."""
        wanted, seen = self._wanted, self.verdicts()
        members = {name: np.concatenate(parts) for name, parts in self._seen.items()}
        phrasings = [_phrasing(item.prompt) for item in self._items]
        return {
            "digit_accuracy": shares.accuracy(wanted, seen),
            "members": {name: shares.accuracy(wanted, found) for name, found in members.items()},
            "per_digit": shares.per_digit(wanted, seen),
            "per_phrasing": shares.per_phrasing(phrasings, wanted, seen),
            "text_use": shares.text_use(wanted, seen),
        }


def own_accuracy(judge: Judge, training: int, heldout: Reference) -> dict[str, Any]:
    """Return how the judge does on real images that it has not learnt from."""
    body: dict[str, Any] = {"gate": GATE, "training_images": training}
    if heldout.images:
        seen, confidence = judge.verdicts(heldout.images)
        body["heldout_accuracy"] = shares.accuracy(np.array(heldout.labels()), seen)
        body["heldout_gate_passed"] = shares.share(int((seen >= 0).sum()), len(seen))
        body["heldout_mean_confidence"] = round(float(confidence.mean()), 6)
    return body


def _phrasing(prompt: str) -> str:
    """Return the phrasing of a digit prompt, with the digit left open."""
    digit = digits.digit_of(prompt)
    for index, pattern in enumerate(digits.PHRASINGS):
        if digits.caption(digit, index) == prompt:
            return pattern
    raise AssertionError(f"{prompt!r} is a digit caption of no phrasing")
