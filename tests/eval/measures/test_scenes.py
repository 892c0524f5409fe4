import numpy as np
import pytest

from eval.config import EvalSection
from eval.measures import scenes
from eval.measures.scenes import Scenes, pairs_of
from eval.prompts import HELDOUT_PAIRS, Item, items
from imagen.data import shapes
from imagen.errors import ConfigError

TRAINED = frozenset(shapes.training_pairs(HELDOUT_PAIRS))


def prompts(count=80):
    return items(EvalSection(prompts="shapes", judge="shapes", count=count))


def drawn(chosen, as_if=None):
    """Perfect pictures of what `chosen`, or other items, ask for."""
    scenes = [shapes.parse((as_if or chosen)[i].prompt) for i in range(len(chosen))]
    return [np.asarray(shapes.draw(s, 5, i, 64)) for i, s in enumerate(scenes)]


def judged(chosen, images, trained=TRAINED):
    found = Scenes(chosen, trained)
    for start in range(0, len(images), 7):
        found.see(images[start : start + 7])
    return found


def test_perfect_pictures_are_right_in_everything_and_only_under_their_own_prompts():
    chosen = prompts()
    found = judged(chosen, drawn(chosen))
    body = found.body()
    for name in ("all_right", "count", "colour", "shape", "size", "binding", "relation"):
        assert body[name]["value"] >= 0.97, name
    assert body["relation"]["n"] < body["count"]["n"] == 80
    assert body["text_use"]["gap"]["interval"][0] > 0.8
    assert body["text_use"]["shuffled_prompt"]["value"] < 0.1
    columns = found.columns()
    assert sum(columns["right"]) == body["all_right"]["hits"]
    one = next(i for i in range(80) if len(shapes.parse(chosen[i].prompt).things) == 1)
    assert columns["seen"][one] == str(shapes.parse(chosen[one].prompt).things[0])


def test_combinations_that_were_never_trained_on_are_told_apart():
    chosen = prompts()
    images = drawn(chosen)
    found = judged(chosen, images)
    new = np.array(found.columns()["heldout"])
    assert new.tolist() == [i % 20 % 2 == 1 for i in range(80)]
    blank = [np.zeros((64, 64, 3), np.uint8) if n else i for i, n in zip(images, new, strict=True)]
    body = judged(chosen, blank).body()
    assert body["heldout"]["all_right"]["value"] == 0
    assert body["seen"]["all_right"]["value"] >= 0.95
    assert body["heldout"]["all_right"]["n"] == body["seen"]["all_right"]["n"] == 40


def test_data_that_hold_nothing_out_have_no_figures_of_new_combinations():
    chosen = prompts(8)
    body = judged(chosen, drawn(chosen), frozenset(shapes.PAIRS)).body()
    assert "heldout" not in body
    assert body["seen"]["count"]["n"] == 8


def test_pictures_of_other_prompts_have_attributes_right_by_chance_alone():
    chosen = prompts()
    body = judged(chosen, drawn(chosen, chosen[1:] + chosen[:1])).body()
    assert body["all_right"]["value"] < 0.1
    assert body["text_use"]["gap"]["interval"][0] < 0.1


def test_pairs_are_read_from_captions_that_speak_of_shapes():
    captions = ["a small red circle", "two large blue crosses", "a photo of a cat"]
    assert pairs_of(captions) == {("red", "circle"), ("blue", "cross")}


def test_a_prompt_that_speaks_of_no_shapes_is_an_error_for_their_judge():
    with pytest.raises(ConfigError, match="given the prompt 'a cat'"):
        Scenes([Item("a cat", 0)], TRAINED)


def test_the_gain_by_the_right_prompt_has_an_interval_also_where_all_is_right():
    found = scenes._text_use([True] * 40, [False] * 40)["gap"]
    assert found["value"] == 1
    low, high = found["interval"]
    assert high == 1
    assert low == pytest.approx(1 - (2 * (1 - 0.912384) ** 2) ** 0.5, abs=1e-3)
