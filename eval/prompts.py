"""The prompts of an evaluation: which prompt and which seed each image has."""

from dataclasses import dataclass

from eval.config import DIGITS, SHAPES, EvalSection
from imagen.data import digits, shapes
from imagen.prompts import read_prompts

HELDOUT_PAIRS = 0.1
"""Share of (colour, shape) pairs that every other shapes prompt is made of alone: those that
`source.heldout_pairs` keeps from training unless it is told otherwise."""
_SCENES_SEED = 2**32
"""No config has it, so scenes are drawn apart from those of the data."""
_EACH = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One image to sample."""

    prompt: str
    seed: int


def digit_prompts(count: int) -> list[str]:
    """Return `count` captions, each ten in a row over all digits, phrasings taking turns."""
    phrasings = len(digits.PHRASINGS)
    return [digits.caption(i % 10, (i // 10 + i % 10) % phrasings) for i in range(count)]


def shape_prompts(count: int) -> list[str]:
    """Return `count` captions of scenes, a fourth as many scenes, each coming four times in all.

    By turns of pairs that training shows and of such that it may not; which of them it has shown
    is for the captions of the training images to say.
    """
    sides = (shapes.training_pairs(HELDOUT_PAIRS), shapes.heldout_pairs(HELDOUT_PAIRS))
    prompts = []
    for i in range(-(-count // _EACH)):
        scene = shapes.scene(_SCENES_SEED, i, sides[i % 2])
        prompts.append(shapes.caption(scene, shapes.phrasing(_SCENES_SEED, i)))
    return [prompts[i % len(prompts)] for i in range(count)]


def items(section: EvalSection) -> list[Item]:
    """Return what to sample: a pure function of the section (and of the prompts file)."""
    if section.prompts == DIGITS:
        prompts = digit_prompts(section.count)
    elif section.prompts == SHAPES:
        prompts = shape_prompts(section.count)
    else:
        lines = read_prompts(section.prompts)
        prompts = [lines[i % len(lines)] for i in range(section.count)]
    return [Item(prompt, section.seed + i) for i, prompt in enumerate(prompts)]


def grid_rows(chosen: list[Item], rows: int, columns: int) -> list[list[int]]:
    """Return indices of items: the first `rows` distinct prompts, up to `columns` items of each."""
    by_prompt: dict[str, list[int]] = {}
    for i, item in enumerate(chosen):
        by_prompt.setdefault(item.prompt, []).append(i)
    return [indices[:columns] for indices in list(by_prompt.values())[:rows]]
