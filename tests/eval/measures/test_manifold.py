import numpy as np
import pytest
import torch

from eval.measures import manifold


def line(*points):
    return np.array(points, np.float64)[:, None]


def test_hand_made_sets_have_the_precision_and_recall_one_can_count():
    real = line(0, 1, 2, 3, 4)  # squared distances to the third neighbour: 9 4 4 4 9
    samples = line(-2.5, 2.5, 6.5, 7.5, 20)  # to theirs: 100 25 81 100 306.25
    np.testing.assert_allclose(manifold.radii(real), [9, 4, 4, 4, 9])
    np.testing.assert_allclose(manifold.radii(samples), [100, 25, 81, 100, 306.25])
    found = manifold.figures(samples, real)
    assert found["precision"]["hits"] == 3  # -2.5, 2.5 and 6.5 are within 3 of 0, 2 and 4
    assert found["recall"]["hits"] == 5
    assert found["precision"]["n"] == found["recall"]["n"] == 5


def test_a_set_is_all_of_itself():
    rows = np.random.default_rng(0).normal(size=(50, 6))
    found = manifold.figures(rows, rows)
    assert found["precision"]["value"] == found["recall"]["value"] == 1


def test_one_mode_of_two_is_precise_and_forgets_the_other():
    draw = np.random.default_rng(0)
    real = np.concatenate([draw.normal(0, 1, (100, 4)), draw.normal(50, 1, (100, 4))])
    found = manifold.figures(draw.normal(0, 1, (200, 4)), real)
    assert found["precision"]["value"] > 0.8
    assert 0.4 < found["recall"]["value"] <= 0.5


def test_noise_far_away_is_neither_precise_nor_covers_anything():
    draw = np.random.default_rng(0)
    found = manifold.figures(draw.normal(90, 1, (60, 4)), draw.normal(0, 1, (60, 4)))
    assert found["precision"]["value"] == found["recall"]["value"] == 0


def test_blocks_do_not_change_what_is_found_and_torch_fidelity_finds_the_same(
    fidelity, monkeypatch
):
    draw = np.random.default_rng(0)
    x, y = draw.normal(0.4, 1, (230, 5)), draw.normal(0, 1.2, (230, 5))
    whole = manifold.figures(x, y)
    monkeypatch.setattr(manifold, "_BLOCK", 17)
    assert manifold.figures(x, y) == whole
    theirs = fidelity("metric_prc").calculate_precision_recall_full(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    assert (whole["precision"]["value"], whole["recall"]["value"]) == pytest.approx(
        theirs, abs=1e-6
    )


def test_as_many_rows_are_compared_as_the_smaller_side_has():
    draw = np.random.default_rng(0)
    found = manifold.figures(draw.normal(size=(30, 3)), draw.normal(size=(500, 3)))
    assert found["precision"]["n"] == found["recall"]["n"] == 30


def test_three_rows_have_no_third_neighbour():
    assert manifold.figures(line(1, 2, 3), line(1, 2, 3, 4))["precision"]["value"] is None
