import warnings

import numpy as np
import pytest
import torch

from eval.measures import frechet
from eval.measures.frechet import Gaussian


def rows(n, d=8, seed=0, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d)).astype(np.float32)


def exactly(mean, cov):
    return Gaussian(np.asarray(mean, float), np.asarray(cov, float) * 999, 1000)


def test_a_set_has_no_distance_from_itself():
    found = Gaussian.of(rows(500))
    assert frechet.distance(found, found) == pytest.approx(0, abs=1e-9)


def test_gaussians_along_axes_have_the_distance_of_the_closed_form():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    found = frechet.distance(exactly([1, 2, 3], np.diag(a)), exactly([1, 0, 3], np.diag(b)))
    assert found == pytest.approx(4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_the_distance_is_that_of_the_matrix_square_root():
    from scipy.linalg import sqrtm

    one, two = Gaussian.of(rows(400)), Gaussian.of(rows(300, seed=1) @ rows(8, seed=2) + 1)
    root = np.real(sqrtm(one.cov @ two.cov))
    apart = one.mean - two.mean
    want = apart @ apart + np.trace(one.cov + two.cov - 2 * root)
    assert frechet.distance(one, two) == pytest.approx(want, rel=1e-6)
    assert frechet.distance(two, one) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("n", [5, 40, 600])
def test_the_distance_is_that_of_torch_fidelity(fidelity, n):
    fid = fidelity("metric_fid")
    a, b = (rows(n, 16, seed=seed, shift=seed).astype(np.float64) for seed in (0, 1))
    stats = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    want = fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    found = frechet.distance(Gaussian.of(a), Gaussian.of(b))
    assert found == pytest.approx(want, rel=1e-6)


def test_fewer_rows_than_features_give_real_numbers_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = frechet.figure(rows(6, 32), Gaussian.of(rows(9, 32, seed=1)))
    assert np.isfinite(found["value"])
    assert found["interval"][0] >= 0


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    whole = rows(700, shift=100.0)
    parts = [Gaussian.of(part) for part in np.array_split(whole, [3, 4, 300])]
    added = sum(parts[1:], parts[0])
    assert added.n == 700
    np.testing.assert_allclose(added.mean, whole.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(added.cov, np.cov(whole.astype(np.float64).T), rtol=1e-9, atol=1e-9)
    left = added - parts[3]
    want = Gaussian.of(whole[:300])
    np.testing.assert_allclose(left.mean, want.mean, rtol=1e-12)
    np.testing.assert_allclose(left.cov, want.cov, rtol=1e-7, atol=1e-9)


def test_the_interval_is_as_wide_as_repeated_samples_spread():
    reference = exactly(np.zeros(8), np.eye(8))
    repeated = [frechet.figure(rows(300, seed=s, shift=0.5), reference) for s in range(40)]
    spread = np.std([found["value"] for found in repeated], ddof=1)
    half = [(found["interval"][1] - found["interval"][0]) / 2 for found in repeated]
    assert np.mean(half) / 1.96 == pytest.approx(spread, rel=0.3)
    middle = np.mean([found["value"] for found in repeated])
    covered = [found["interval"][0] <= middle <= found["interval"][1] for found in repeated]
    assert sum(covered) >= 34


def test_two_rows_are_too_few_for_an_interval():
    assert frechet.figure(rows(2), Gaussian.of(rows(9)))["interval"] is None


def test_fewer_rows_than_features_have_the_distance_and_interval_of_the_whole_matrix():
    reference = Gaussian.of(rows(90, 48, seed=1, shift=0.3))
    for n in (3, 11, 47):
        found, left_out = frechet._of_few(rows(n, 48), reference)
        want, others = frechet._of_many(rows(n, 48), reference)
        assert found == pytest.approx(want, rel=1e-7)
        assert left_out == pytest.approx(others, rel=1e-7)


def test_fewer_rows_than_features_need_no_matrix_of_all_features(monkeypatch):
    monkeypatch.setattr(frechet, "distance", None)
    found = frechet.figure(rows(2, 48), Gaussian.of(rows(90, 48, seed=1)))
    assert found["value"] > 0
    assert found["interval"] is None
