"""The prompts of an evaluation: which prompt and which seed each image has."""

from dataclasses import dataclass

from eval.config import DIGITS, EvalSection
from imagen.data import digits
from imagen.prompts import read_prompts


@dataclass(frozen=True, slots=True)
class Item:
    """One image to sample."""

    prompt: str
    seed: int


def digit_prompts(count: int) -> list[str]:
    """Return `count` captions, each ten in a row over all digits, phrasings taking turns."""
    phrasings = len(digits.PHRASINGS)
    return [digits.caption(i % 10, (i // 10 + i % 10) % phrasings) for i in range(count)]


def items(section: EvalSection) -> list[Item]:
    """Return what to sample: a pure function of the section (and of the prompts file)."""
    if section.prompts == DIGITS:
        prompts = digit_prompts(section.count)
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
