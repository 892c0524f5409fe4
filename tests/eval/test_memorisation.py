import math

import numpy as np
import pytest

from eval.memorisation import Nearest, compare, nearer, nearest


def world(n, seed):
    return np.random.default_rng(seed).random((n, 48)).astype(np.float32)


def test_nearest_agrees_with_the_plain_definition():
    rows, training = world(600, 0), world(70, 1)
    plain = np.sqrt(((rows[:, None].astype(np.float64) - training) ** 2).mean(axis=2))
    found = nearest(rows, training)
    assert np.array_equal(found.index, plain.argmin(axis=1))
    assert np.allclose(found.distance, plain.min(axis=1), atol=1e-9)


def test_a_copy_has_distance_zero_and_names_its_original():
    training = world(70, 1)
    found = nearest(training[[5, 9]], training)
    assert found.index.tolist() == [5, 9]
    assert np.all(found.distance == 0)


def test_copying_shows():
    training, heldout = world(300, 0), nearest(world(100, 1), world(300, 0))
    copies = training[:50] + np.random.default_rng(2).normal(0, 0.01, (50, 48)).astype(np.float32)
    body = compare(nearest(copies, training), heldout)
    assert body["ratio_of_medians"] < 0.1
    assert body["nearer_than_heldout"]["value"] == 1
    low, high = body["nearer_than_heldout"]["interval"]
    assert 0.9 < low < 0.99  # all were nearer: the next one need not be
    assert high == 1


def test_new_images_of_the_same_world_do_not_look_copied():
    training = world(300, 0)
    body = compare(nearest(world(400, 3), training), nearest(world(400, 1), training))
    assert 0.97 < body["ratio_of_medians"] < 1.03
    low, high = body["nearer_than_heldout"]["interval"]
    assert low < 0.5 < high
    assert high - low < 0.2


def test_the_share_of_nearer_pairs_is_the_plain_definition():
    samples, heldout = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0])
    pairs = [1.0 if s < h else 0.5 if s == h else 0.0 for s in samples for h in heldout]
    assert nearer(samples, heldout)["value"] == np.mean(pairs)


def test_a_model_that_always_draws_the_same_picture_shows_in_distinct_nearest():
    training = world(30, 0)
    body = compare(
        nearest(np.repeat(training[:1], 20, axis=0), training), nearest(training, training)
    )
    assert body["distinct_nearest"] == 1


def test_no_heldout_images_leave_the_comparison_out():
    found = nearest(world(3, 0), world(9, 1))
    body = compare(found, Nearest(np.zeros(0), np.zeros(0, np.int64)))
    assert body["heldout"] == {"n": 0}
    assert "ratio_of_medians" not in body


@pytest.mark.parametrize(("m", "n", "shift"), [(40, 50, 0.0), (40, 50, 2.0), (200, 300, 1.0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(m, n, shift):
    draw, covered = np.random.default_rng(0), 0
    truth = 0.5 * (1 + math.erf(shift / 2))  # of normal distances, moved apart
    for _ in range(500):
        low, high = nearer(draw.normal(-shift, 1, m), draw.normal(0, 1, n))["interval"]
        covered += low <= truth <= high
    assert 0.92 <= covered / 500 <= 0.99
