"""From sampled and real images to the figures of metrics.json.

The samples are gone through once, a block at a time: there may be more than fit into memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval import extractors
from eval.config import EvalConfig, EvalSection
from eval.features import colours, evenly
from eval.measures import distribution, fit, intervals
from eval.measures.fidelity import Fidelity
from eval.measures.numbers import Numbers, own_accuracy
from eval.measures.scenes import Scenes
from eval.memorisation import Nearest, Neighbours, compare
from eval.prompts import Item
from eval.yardstick import Yardstick
from eval.yardstick import yardstick as yardstick  # what samples are held against

BLOCK = 100
"""Images of each member that are looked at at once."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was sampled: items, and each member's images, uint8 (h, w, c), in the same order."""

    items: list[Item]
    members: dict[str, Sequence[np.ndarray]]

    @property
    def final(self) -> Sequence[np.ndarray]:
        """Images of the last member: what the cascade is for."""
        return list(self.members.values())[-1]

    def blocks(self) -> Iterator[dict[str, list[np.ndarray]]]:
        """Yield some images of every member at a time, in order."""
        for start in range(0, len(self.items), BLOCK):
            numbers = range(start, min(start + BLOCK, len(self.items)))
            yield {name: [images[i] for i in numbers] for name, images in self.members.items()}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about samples."""

    body: dict[str, Any]
    """Sections of metrics.json."""
    columns: dict[str, list[Any]]
    """What images.jsonl says of each image, in order."""
    nearest: Nearest
    """The training image nearest to each final image."""
    verdicts: np.ndarray | None = None
    """The digit of each final image, -1 where none is seen; None where there is no such judge."""


@dataclass(slots=True)
class _Seen:
    """All that one pass over the samples collects."""

    fidelity: Fidelity
    numbers: Numbers | None
    scenes: Scenes | None
    components: list[np.ndarray] = field(default_factory=list)
    nearest: list[Nearest] = field(default_factory=list)

    def all_nearest(self) -> Nearest:
        """Return the nearest training image of every final image."""
        return Nearest(
            np.concatenate([part.distance for part in self.nearest]),
            np.concatenate([part.index for part in self.nearest]),
        )


def measure(
    config: EvalConfig, sampled: Sampled, real: Yardstick, features: Mapping[str, np.ndarray]
) -> Measured:
    """Return all that can be measured on an evaluation's samples.

    `features`: what the section's extractor found, (n, d) by array name.
    """
    training = Neighbours(colours(real.training.images))
    seen = _look(sampled, real, training)
    prompts = [item.prompt for item in sampled.items]
    body, columns = _judged(seen, real)
    body |= _distribution(config.eval, seen, real, features)
    if extractors.CLIP_IMAGE in features:
        images, texts = features[extractors.CLIP_IMAGE], features[extractors.CLIP_TEXT]
        body["clip"] = fit.figures(config.eval.clip, images, texts, prompts)
        columns["clip"] = _shortened(fit.scores(images, texts))
    if fidelity := seen.fidelity.body():
        body["fidelity"] = fidelity
        columns["consistency"] = _shortened(seen.fidelity.of(list(sampled.members)[-1]))
    nearest = seen.all_nearest()
    body["memorisation"] = memorisation(nearest, training, real)
    columns["nearest_distance"] = _shortened(nearest.distance)
    verdicts = None if seen.numbers is None else seen.numbers.verdicts()
    return Measured(body, columns, nearest, verdicts)


def measure_point(
    config: EvalConfig, sampled: Sampled, real: Yardstick, features: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the few figures of one value of a sweep, by short names."""
    seen = _look(sampled, real, None)
    body, _ = _judged(seen, real)
    point: dict[str, Any] = {}
    accuracy = body.get("digit_accuracy") or body.get("shapes", {}).get("all_right")
    if accuracy is not None:
        point["accuracy"] = accuracy
    rows = _rows(config.eval, seen, features)
    if rows is not None and real.statistics is not None:
        point |= distribution.point(rows, real.statistics)
    if extractors.CLIP_IMAGE in features:
        found = fit.scores(features[extractors.CLIP_IMAGE], features[extractors.CLIP_TEXT])
        point["clip"] = intervals.mean(found)
    last = seen.fidelity.body().get(list(sampled.members)[-1], {})
    return point | {name: last[name] for name in ("consistency", "colour_drift") if name in last}


def _look(sampled: Sampled, real: Yardstick, training: Neighbours | None) -> _Seen:
    """Go through the samples once."""
    seen = _Seen(
        Fidelity(list(sampled.members)),
        None if real.judge is None else Numbers(sampled.items, real.judge),
        None if real.trained is None else Scenes(sampled.items, real.trained),
    )
    for block in sampled.blocks():
        final = list(block.values())[-1]
        seen.fidelity.see(block)
        if seen.numbers is not None:
            seen.numbers.see(block)
        if seen.scenes is not None:
            seen.scenes.see(final)
        if training is not None or real.components is not None:
            rows = colours(final)
            if training is not None:
                seen.nearest.append(training(rows))
            if real.components is not None:
                seen.components.append(real.components(rows))
    return seen


def _judged(seen: _Seen, real: Yardstick) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return what the judge of the section says: sections of metrics.json, columns."""
    if seen.numbers is not None:
        assert real.judge is not None, "numbers are judged by the judge"
        own = own_accuracy(real.judge, len(real.training.images), real.heldout)
        return seen.numbers.body() | {"judge": own}, seen.numbers.columns()
    if seen.scenes is not None:
        shapes = seen.scenes.body() | {"heldout_judge": real.scenes}
        return {"shapes": shapes}, seen.scenes.columns()
    return {}, {}


def _distribution(
    section: EvalSection, seen: _Seen, real: Yardstick, features: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    rows, name = _rows(section, seen, features), extractors.name_of(section.features)
    if real.left_out:
        return {"distribution": {name: {"left_out": real.left_out}}}
    if rows is None or real.statistics is None:
        return {}
    body = distribution.figures(rows, real.statistics)
    if real.components is not None and len(real.heldout.images) > 1:
        # as many as there are samples, from the whole split: shards may be sorted
        images = evenly(real.heldout.images, len(rows))
        body["heldout"] = distribution.point(real.components(colours(images)), real.statistics)
    return {"distribution": {name: body}}


def _rows(
    section: EvalSection, seen: _Seen, features: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """Return the features that the samples are compared in; None: they are not."""
    if seen.components:
        return np.concatenate(seen.components)
    return features.get(extractors.name_of(section.features))


def memorisation(nearest: Nearest, training: Neighbours, real: Yardstick) -> dict[str, Any]:
    """Return the memorisation figures."""
    heldout = real.heldout
    nothing = Nearest(np.zeros(0), np.zeros(0, np.int64))
    apart = training(colours(heldout.images)) if heldout.images else nothing
    body = compare(nearest, apart)
    for name, split in (("training", real.training), ("heldout", heldout)):
        body[f"{name}_images"] = {
            "used": len(split.images),
            "of": split.total,
            "unreadable": dict(split.unreadable),
        }
    return body


def _shortened(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
