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
    low, high = shares.wilson(20, 200)
    assert always_three["gap"]["interval"] == pytest.approx([low - 0.1, high - 0.1], abs=1e-6)


def test_a_model_that_follows_its_text_gains_everything():
    wanted = np.arange(200) % 10
    body = shares.text_use(wanted, wanted)
    assert body["chance"]["value"] == pytest.approx(0.1)
    low, _ = shares.wilson(200, 200)
    gain = body["share_of_possible_gain"]
    assert gain["value"] == 1
    assert gain["interval"] == pytest.approx([(low - 0.1) / 0.9, 1], abs=1e-6)
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


def test_what_is_asked_for_is_fixed_so_chance_has_the_error_of_the_images_with_a_digit_alone():
    wanted = np.arange(200) % 10
    body = shares.text_use(wanted, np.where(np.arange(200) < 4, -1, wanted))
    low, high = shares.wilson(196, 200)
    assert body["chance"]["value"] == pytest.approx(0.098)
    assert body["chance"]["interval"] == pytest.approx([low / 10, high / 10], abs=1e-6)
    for name in ("chance", "gap", "share_of_possible_gain"):
        low, high = body[name]["interval"]
        assert low < body[name]["value"] < high, name


def test_the_interval_of_the_gain_covers_the_truth_as_often_as_it_says():
    draw, wanted, covered = np.random.default_rng(0), np.arange(200) % 10, 0
    right, seen = 0.97, 0.99
    truth = (right - seen / 10) / (1 - seen / 10)
    for _ in range(1000):
        u, other = draw.random(200), (wanted + draw.integers(1, 10, 200)) % 10
        shown = np.where(u < right, wanted, np.where(u < seen, other, -1))
        low, high = shares.text_use(wanted, shown)["share_of_possible_gain"]["interval"]
        covered += low <= truth <= high
    assert 920 <= covered <= 985


def test_digits_that_are_asked_for_unevenly_give_chance_by_their_shares():
    wanted = np.array([1, 1, 1, 2])
    body = shares.text_use(wanted, np.array([1, 1, 2, -1]))
    assert body["chance"]["value"] == pytest.approx((0.75 + 0.75 + 0.25) / 4)
    alone = shares.text_use(np.ones(4, int), np.ones(4, int))
    assert alone["chance"]["value"] == 1
    assert alone["share_of_possible_gain"]["value"] is None
