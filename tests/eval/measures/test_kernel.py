import numpy as np
import pytest
import torch

from eval.features import evenly
from eval.measures import kernel


def rows(n, d=8, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d))


def plain(x, y):
    """The unbiased estimate by its definition, one pair at a time."""
    k = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    within = [
        np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
        for s in (x, y)
    ]
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


@pytest.mark.parametrize(("m", "n"), [(20, 20), (23, 31), (4, 9), (2, 3)])
def test_the_estimate_is_the_plain_definition(m, n):
    x, y = rows(m), rows(n, seed=1, shift=0.7)
    assert kernel.figure(x, y)["value"] == pytest.approx(plain(x, y), rel=1e-6)


def test_the_estimate_is_that_of_torch_fidelity(fidelity):
    kid = fidelity("metric_kid")
    x, y = rows(200), rows(200, seed=1, shift=0.3)
    want = kid.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=200, verbose=False
    )
    found = kernel.figure(x, y)["value"]
    assert found == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-6)


def test_the_mean_over_subsets_of_torch_fidelity_is_within_the_interval(fidelity):
    kid = fidelity("metric_kid")
    x, y = rows(600), rows(600, seed=1, shift=0.3)
    want = kid.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=50, kid_subset_size=100, verbose=False
    )
    low, high = kernel.figure(x, y)["interval"]
    assert low < want["kernel_inception_distance_mean"] < high


def test_samples_of_one_distribution_have_a_distance_around_zero():
    values = [kernel.figure(rows(100, seed=s), rows(150, seed=100 + s))["value"] for s in range(60)]
    assert abs(np.mean(values)) < 2.5 * np.std(values) / 60**0.5
    assert min(values) < 0 < max(values)  # unbiased, so it is negative as often


def test_the_interval_is_as_wide_as_repeated_samples_spread():
    pairs = [(rows(150, seed=s, shift=0.4), rows(200, seed=500 + s)) for s in range(40)]
    found = [kernel.figure(x, y) for x, y in pairs]
    spread = np.std([f["value"] for f in found], ddof=1)
    half = np.mean([(f["interval"][1] - f["interval"][0]) / 2 for f in found])
    assert half / 1.96 == pytest.approx(spread, rel=0.35)


def test_more_rows_than_are_looked_at_are_chosen_evenly(monkeypatch):
    monkeypatch.setattr(kernel, "MOST", 50)
    x, y = rows(500), rows(80, seed=1)
    found = kernel.figure(x, y)
    assert found["n"] == 50
    want = plain(evenly(x, 50), evenly(y, 50))
    assert found["value"] == pytest.approx(want, rel=1e-6)


def test_one_row_has_no_kernel_distance():
    assert kernel.figure(rows(1), rows(9))["value"] is None
