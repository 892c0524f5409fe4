import numpy as np

from eval.components import MOST, Components
from eval.features import colours


def pictures(n, seed=0, brightness=0):
    draw = np.random.default_rng(seed)
    ramp = np.linspace(0, 100, 32)
    slopes = draw.uniform(-1, 1, (n, 2))
    planes = [100 + brightness + a * ramp[:, None] + b * ramp for a, b in slopes]
    noise = draw.normal(0, 2, (n, 32, 32))
    return [
        np.clip(p + e, 0, 255).astype(np.uint8)[:, :, None]
        for p, e in zip(planes, noise, strict=True)
    ]


def test_components_are_those_of_the_singular_value_decomposition():
    images = pictures(90)
    found = Components.fit(images)
    rows = colours(images).astype(np.float64)
    _, _, vectors = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    assert found.basis.shape == (1024, MOST)
    np.testing.assert_allclose(np.abs(vectors[:2] @ found.basis[:, :2]), np.eye(2), atol=1e-3)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(MOST), atol=1e-5)


def test_two_directions_explain_pictures_that_differ_in_two_ways():
    images = pictures(200)
    spread = Components.fit(images)(colours(images)).var(axis=0)
    assert spread[:2].sum() > 20 * spread[2:].sum()


def test_noise_which_no_component_has_shows_in_the_distance_from_all_of_them():
    images = pictures(100)
    basis = Components.fit(images)
    draw = np.random.default_rng(1)
    noisy = [np.clip(i + draw.normal(0, 20, i.shape), 0, 255).astype(np.uint8) for i in images]
    clean, dirty = basis(colours(images)), basis(colours(noisy))
    np.testing.assert_allclose(dirty[:, :2].mean(axis=0), clean[:, :2].mean(axis=0), atol=0.3)
    assert dirty[:, -1].min() > 2 * clean[:, -1].max()


def test_few_images_have_fewer_components_and_blocks_do_not_matter(monkeypatch):
    images = pictures(12)
    whole = Components.fit(images)
    assert whole.basis.shape == (1024, 11)
    monkeypatch.setattr("eval.components._BLOCK", 5)
    again = Components.fit(images)
    np.testing.assert_allclose(again.basis[:, :2], whole.basis[:, :2], atol=1e-4)
    assert again.fingerprint.startswith("pca-")


def test_brighter_pictures_are_farther_away_in_components_too():
    from eval.measures import distribution
    from eval.statistics import Statistics

    images = pictures(300)
    basis = Components.fit(images)
    real = Statistics.of(basis.fingerprint, "pictures", basis(colours(images)))
    same = distribution.figures(basis(colours(pictures(300, seed=1))), real)
    other = distribution.figures(basis(colours(pictures(300, seed=2, brightness=40))), real)
    assert same["fd"]["interval"][1] < other["fd"]["interval"][0]
    assert same["kid"]["interval"][0] < 0 < same["kid"]["interval"][1]
    assert other["kid"]["interval"][0] > 0
    assert same["recall"]["value"] > other["recall"]["value"]
    assert same["reference"] == {"what": "pictures", "n": 300}
