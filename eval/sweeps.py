"""Sweeps: the first images of an evaluation again, each time with one setting changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval import prompts, sampling
from eval.config import EvalConfig
from imagen import storage
from imagen.cascade import SampleOptions

FOLDER = "sweeps"


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one sweep."""

    sweep: str
    """guidance, steps, samplers or aug_level."""
    value: float | int | str
    options: SampleOptions

    @property
    def label(self) -> str:
        """The value as files and pictures name it."""
        return self.value if isinstance(self.value, str) else f"{self.value:g}"

    def folder(self, evaluation: str) -> str:
        """Return where its samples go."""
        return storage.join(evaluation, FOLDER, self.sweep, self.label)


def points(config: EvalConfig) -> list[Point]:
    """Return every value of every sweep that these members can be swept over, in order."""
    section, options = config.eval.sweeps, config.eval.options
    found = [Point("guidance", w, _of_base(options, guidance_scale=w)) for w in section.guidance]
    found += [Point("steps", n, replace(options, steps=n)) for n in section.steps]
    found += [Point("samplers", name, replace(options, sampler=name)) for name in section.samplers]
    if len(config.members) > 1:
        levels = section.aug_level
        found += [Point("aug_level", level, replace(options, aug_level=level)) for level in levels]
    return found


def _of_base(options: SampleOptions, **keys: Any) -> SampleOptions:
    return replace(options, members={**options.members, "base": keys})


def items(config: EvalConfig) -> list[prompts.Item]:
    """Return what is sampled at each value."""
    return prompts.items(config.eval)[: config.eval.sweeps.count]


def chunks(config: EvalConfig, point: Point, evaluation: str, cascade: str) -> list[sampling.Chunk]:
    """Return the chunks of one value."""
    return sampling.chunks(point.folder(evaluation), items(config), cascade, point.options)


def by_sweep(found: Sequence[Point]) -> dict[str, list[Point]]:
    """Return points by the name of their sweep."""
    return {
        name: [p for p in found if p.sweep == name]
        for name in dict.fromkeys(p.sweep for p in found)
    }
