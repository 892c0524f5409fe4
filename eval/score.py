"""From sampled and real images to the body of metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import metrics
from eval.features import colours
from eval.judge import GATE, Judge
from eval.memorisation import Nearest, compare, nearest
from eval.prompts import Item
from eval.reference import Reference
from imagen.data import digits
from imagen.errors import ShardError


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was sampled: items, and each member's images, uint8 (h, w, c), in the same order."""

    items: list[Item]
    members: dict[str, list[np.ndarray]]

    @property
    def final(self) -> list[np.ndarray]:
        """Images of the last member: what the cascade is for."""
        return list(self.members.values())[-1]


def memorisation(
    sampled: Sampled, training: Reference, heldout: Reference
) -> tuple[dict[str, Any], Nearest]:
    """Return the memorisation figures, and the nearest training image of each final sample.

    Raises ShardError when there are no training images.
    """
    if not training.images:
        raise ShardError(f"none of the {training.total} training images is readable")
    rows = colours(training.images)
    samples = nearest(colours(sampled.final), rows)
    nothing = Nearest(np.zeros(0), np.zeros(0, np.int64))
    real = nearest(colours(heldout.images), rows) if heldout.images else nothing
    body = compare(samples, real)
    for name, reference in (("training", training), ("heldout", heldout)):
        body[f"{name}_images"] = {
            "used": len(reference.images),
            "of": reference.total,
            "unreadable": dict(reference.unreadable),
        }
    return body, samples


def digit_accuracy(
    sampled: Sampled, training: Reference, heldout: Reference
) -> tuple[dict[str, Any], np.ndarray]:
    """Return accuracies by the judge of digits, and its verdict on each final sample."""
    judge = Judge.fit(training.images, training.labels())
    wanted = np.array([digits.digit_of(item.prompt) for item in sampled.items])
    verdicts = {name: judge.verdicts(images)[0] for name, images in sampled.members.items()}
    seen = list(verdicts.values())[-1]
    body = {
        "digit_accuracy": metrics.accuracy(wanted, seen),
        "members": {name: metrics.accuracy(wanted, v) for name, v in verdicts.items()},
        "per_digit": metrics.per_digit(wanted, seen),
        "per_phrasing": metrics.per_phrasing(_phrasings(sampled.items), wanted, seen),
        "text_use": metrics.text_use(wanted, seen),
        "judge": _own_accuracy(judge, len(training.images), heldout),
    }
    return body, seen


def _own_accuracy(judge: Judge, trained_on: int, heldout: Reference) -> dict[str, Any]:
    body: dict[str, Any] = {"gate": GATE, "training_images": trained_on}
    if heldout.images:
        seen, confidence = judge.verdicts(heldout.images)
        body["heldout_accuracy"] = metrics.accuracy(np.array(heldout.labels()), seen)
        body["heldout_gate_passed"] = metrics.share(int((seen >= 0).sum()), len(seen))
        body["heldout_mean_confidence"] = round(float(confidence.mean()), 6)
    return body


def _phrasings(items: Sequence[Item]) -> list[str]:
    """Return the phrasing of each digit prompt, with the digit left open."""
    return [_phrasing(item.prompt) for item in items]


def _phrasing(prompt: str) -> str:
    digit = digits.digit_of(prompt)
    for index, pattern in enumerate(digits.PHRASINGS):
        if digits.caption(digit, index) == prompt:
            return pattern
    raise AssertionError(f"{prompt!r} is a digit caption of no phrasing")
