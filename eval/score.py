"""From sampled and real images to the body of metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import metrics, reference
from eval.features import colours
from eval.judge import GATE, Judge
from eval.memorisation import Nearest, compare, nearest
from eval.prompts import Item
from eval.reference import Reference
from imagen.data import digits
from imagen.data.prepared import Prepared
from imagen.errors import ShardError
from imagen.member import MemberConfig


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was sampled: items, and each member's images, uint8 (h, w, c), in the same order."""

    items: list[Item]
    members: dict[str, list[np.ndarray]]

    @property
    def final(self) -> list[np.ndarray]:
        """Images of the last member: what the cascade is for."""
        return list(self.members.values())[-1]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What samples are held against."""

    training: Reference
    heldout: Reference
    judge: Judge | None
    """None: nobody judges."""


def yardstick(prepared: Prepared, last: MemberConfig, judge: str) -> Yardstick:
    """Read the real images and let the judge learn from them.

    Raises ShardError when there is nothing to learn from; best before anything is sampled.
    """
    shape, channels = last.shape, last.network.channels
    training = reference.load(prepared, "train", shape, channels)
    if not training.images:
        raise ShardError(
            f"none of the {training.total} training images is readable: {dict(training.unreadable)}"
        )
    heldout = reference.load(prepared, "heldout", shape, channels)
    fitted = Judge.fit(training.images, training.labels()) if judge == "digits" else None
    return Yardstick(training, heldout, fitted)


def memorisation(sampled: Sampled, real: Yardstick) -> tuple[dict[str, Any], Nearest]:
    """Return the memorisation figures, and the nearest training image of each final sample."""
    training, heldout = real.training, real.heldout
    rows = colours(training.images)
    samples = nearest(colours(sampled.final), rows)
    nothing = Nearest(np.zeros(0), np.zeros(0, np.int64))
    apart = nearest(colours(heldout.images), rows) if heldout.images else nothing
    body = compare(samples, apart)
    for name, split in (("training", training), ("heldout", heldout)):
        body[f"{name}_images"] = {
            "used": len(split.images),
            "of": split.total,
            "unreadable": dict(split.unreadable),
        }
    return body, samples


def digit_accuracy(
    sampled: Sampled, real: Yardstick, judge: Judge
) -> tuple[dict[str, Any], np.ndarray]:
    """Return accuracies by the judge of digits, and its verdict on each final sample."""
    wanted = np.array([digits.digit_of(item.prompt) for item in sampled.items])
    verdicts = {name: judge.verdicts(images)[0] for name, images in sampled.members.items()}
    seen = list(verdicts.values())[-1]
    body = {
        "digit_accuracy": metrics.accuracy(wanted, seen),
        "members": {name: metrics.accuracy(wanted, v) for name, v in verdicts.items()},
        "per_digit": metrics.per_digit(wanted, seen),
        "per_phrasing": metrics.per_phrasing(_phrasings(sampled.items), wanted, seen),
        "text_use": metrics.text_use(wanted, seen),
        "judge": _own_accuracy(judge, real),
    }
    return body, seen


def _own_accuracy(judge: Judge, real: Yardstick) -> dict[str, Any]:
    heldout = real.heldout
    body: dict[str, Any] = {"gate": GATE, "training_images": len(real.training.images)}
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
