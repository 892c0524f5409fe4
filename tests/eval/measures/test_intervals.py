import numpy as np
import pytest

from eval.measures import intervals


def test_the_interval_of_a_mean_covers_it_in_nineteen_of_twenty_cases():
    draw = np.random.default_rng(0)
    found = [intervals.mean(draw.normal(3, 2, 100)) for _ in range(1000)]
    covered = sum(f["interval"][0] <= 3 <= f["interval"][1] for f in found)
    assert 930 <= covered <= 965
    assert found[0]["n"] == 100


def test_the_interval_of_a_ratio_covers_it_in_nineteen_of_twenty_cases():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        lower = draw.uniform(1, 3, 100)
        found = intervals.ratio(1.5 * lower + draw.normal(0, 0.5, 100), lower)
        hits += found["interval"][0] <= 1.5 <= found["interval"][1]
    assert 930 <= hits <= 965


def test_too_few_values_have_no_interval():
    assert intervals.mean(np.zeros(0)) == {"value": None, "interval": None, "n": 0}
    assert intervals.mean(np.ones(1)) == {"value": 1.0, "interval": None, "n": 1}
    assert intervals.ratio(np.ones(3), np.zeros(3))["value"] is None


def test_what_is_no_number_is_no_figure():
    assert intervals.figure(np.nan, (0, np.inf), 3) == {"value": None, "interval": None, "n": 3}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=40)
    left_out = [np.delete(values, i).mean() for i in range(40)]
    error = values.std(ddof=1) / 40**0.5
    assert intervals.jackknife_error(left_out) == pytest.approx(error, rel=1e-9)
