from collections import Counter

import pytest

from eval.config import EvalSection
from eval.prompts import HELDOUT_PAIRS, Item, grid_rows, items
from imagen import storage
from imagen.data import digits, shapes
from imagen.errors import ConfigError


def test_digit_prompts_are_balanced_over_digits_and_use_every_phrasing():
    chosen = items(EvalSection(count=200))
    per_digit = Counter(digits.digit_of(item.prompt) for item in chosen)
    assert per_digit == dict.fromkeys(range(10), 20)
    assert len({item.prompt for item in chosen}) == 10 * len(digits.PHRASINGS)


def test_every_image_has_its_own_seed():
    chosen = items(EvalSection(count=30, seed=7))
    assert [item.seed for item in chosen] == list(range(7, 37))


def test_shape_prompts_are_scenes_of_trained_and_held_out_pairs_by_turns():
    chosen = items(EvalSection(prompts="shapes", judge="shapes", count=200))
    assert chosen == items(EvalSection(prompts="shapes", judge="shapes", count=200))
    assert Counter(Counter(item.prompt for item in chosen).values())[4] >= 45  # some are alike
    sides = (shapes.training_pairs(HELDOUT_PAIRS), shapes.heldout_pairs(HELDOUT_PAIRS))
    for i, item in enumerate(chosen[:50]):
        for thing in shapes.parse(item.prompt).things:
            assert (thing.colour, thing.shape) in sides[i % 2]
    assert items(EvalSection(prompts="shapes", judge="shapes", count=1))[0] == chosen[0]


def test_prompts_of_a_file_take_turns(tmp_path):
    path = str(tmp_path / "prompts.txt")
    storage.put(path, b"a cat\n\n  a dog \n")
    chosen = items(EvalSection(prompts=path, judge="none", count=3, seed=5))
    assert chosen == [Item("a cat", 5), Item("a dog", 6), Item("a cat", 7)]


def test_a_missing_prompts_file_is_named():
    with pytest.raises(ConfigError, match=r"`/no/such\.txt` does not exist"):
        items(EvalSection(prompts="/no/such.txt", judge="none"))


def test_grid_shows_the_first_prompts_and_the_seeds_there_are():
    chosen = [Item(p, s) for s, p in enumerate(["a", "b", "a", "c", "a", "b"])]
    assert grid_rows(chosen, 2, 2) == [[0, 2], [1, 5]]
    assert grid_rows(chosen, 9, 9) == [[0, 2, 4], [1, 5], [3]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 15}, "count 15 is not a multiple of 10"),
        ({"count": 0}, "count 0 samples nothing"),
        ({"prompts": "p.txt"}, "judge digits cannot judge the prompts of `p.txt`"),
        ({"seed": 2**32 - 1}, "are not in"),
    ],
)
def test_sections_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        EvalSection(**values)
