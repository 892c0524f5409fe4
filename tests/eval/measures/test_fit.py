import numpy as np
import pytest

from eval.measures import fit


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_score_is_a_hundred_cosines_and_never_negative():
    images = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = np.array([[0.6, 0.8], [-1.0, 0.0], [1.0, 0.0]])
    assert fit.scores(images, texts).tolist() == pytest.approx([60, 0, 100])


def test_images_that_fit_their_texts_score_more_than_with_others():
    draw = np.random.default_rng(0)
    texts = unit(draw.normal(size=(40, 16)))
    images = unit(texts + 0.2 * draw.normal(size=(40, 16)))
    body = fit.figures("clip", images, texts, [f"prompt {i}" for i in range(40)])
    assert body["model"] == "clip"
    assert body["score"]["value"] > 70
    assert body["gap"]["interval"][0] > 50
    gap = body["score"]["value"] - body["shuffled"]["value"]
    assert body["gap"]["value"] == pytest.approx(gap, rel=1e-5)


def test_a_single_prompt_has_a_score_and_no_gap():
    rows = unit(np.random.default_rng(0).normal(size=(4, 3)))
    assert set(fit.figures("clip", rows, rows, ["a"] * 4)) == {"model", "score"}
