import numpy as np
import pytest

from eval.measures import shares


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
        (0, 10, 0.0, 0.27753279986288),
        (10, 10, 0.72246720013712, 1.0),
        (7, 20, 0.18119182325544, 0.56714569569286),
        (186, 200, 0.88589, 0.95783),
    ],
)
def test_wilson_interval_is_that_of_scipy(hits, n, low, high):
    from scipy.stats import binomtest

    got = shares.wilson(hits, n)
    want = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert got == pytest.approx((want.low, want.high), abs=1e-12)
    assert got == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_of_nothing_is_everything():
    assert shares.wilson(0, 0) == (0.0, 1.0)
    assert shares.share(0, 0)["value"] is None


def test_an_image_that_fails_the_gate_counts_as_wrong():
    wanted, seen = np.array([1, 2, 3, 4]), np.array([1, -1, 3, 5])
    assert shares.accuracy(wanted, seen)["value"] == 0.5


def test_per_digit_table_says_what_was_seen_instead():
    table = shares.per_digit(np.array([1, 1, 1, 7]), np.array([1, 7, -1, 7]))
    assert table["1"]["value"] == pytest.approx(1 / 3)
    assert table["1"]["instead"] == {"none": 1, "7": 1}
    assert table["7"]["instead"] == {}


def test_per_phrasing_groups_by_name():
    names, wanted = ["a", "b", "a"], np.array([0, 1, 2])
    table = shares.per_phrasing(names, wanted, np.array([0, 0, 2]))
    assert table["a"]["value"] == 1
    assert table["b"]["value"] == 0


def test_a_model_that_ignores_its_text_gains_nothing():
    wanted = np.arange(200) % 10
    always_three = shares.text_use(wanted, np.full(200, 3))
    assert always_three["right_prompt"]["value"] == always_three["chance"]["value"] == 0.1
    assert always_three["share_of_possible_gain"]["value"] == pytest.approx(0)
    assert always_three["gap"]["interval"] == pytest.approx([0, 0], abs=1e-12)


def test_a_model_that_follows_its_text_gains_everything():
    wanted = np.arange(200) % 10
    body = shares.text_use(wanted, wanted)
    assert body["chance"]["value"] == pytest.approx(0.1)
    assert body["share_of_possible_gain"]["interval"] == pytest.approx([1, 1])
    assert body["gap"]["value"] == pytest.approx(0.9)
    assert body["gate_passed"]["value"] == 1


def test_the_gain_of_a_model_that_follows_half_of_its_texts_is_within_its_interval():
    image = np.arange(400)
    wanted = image % 10
    seen = np.where(image // 10 % 2, wanted, (wanted + 1 + image // 20 % 9) % 10)
    gain = shares.text_use(wanted, seen)["share_of_possible_gain"]
    assert gain["value"] == pytest.approx((0.5 - 0.1) / 0.9, abs=0.01)
    low, high = gain["interval"]
    assert low < gain["value"] < high
    assert 0.05 < high - low < 0.15


def test_no_images_have_no_gain():
    nothing = np.zeros(0, int)
    assert shares.text_use(nothing, nothing) == {"gate_passed": shares.share(0, 0)}
