import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from eval.features import SIDE, colours, greys, resized
from eval.judge import Judge
from imagen.errors import ShardError


def real_digits(side=32):
    data = load_digits()
    scans = (data.images * 255 / 16).round().astype(np.uint8)
    how = Image.Resampling.BICUBIC
    images = [np.asarray(Image.fromarray(s).resize((side, side), how))[:, :, None] for s in scans]
    return images, data.target


@pytest.fixture(scope="module")
def split():
    images, labels = real_digits()
    held = np.random.default_rng(3).random(len(images)) < 0.05
    pick = lambda mask: ([images[i] for i in np.flatnonzero(mask)], labels[mask])  # noqa: E731
    return pick(~held), pick(held)


@pytest.fixture(scope="module")
def judge(split):
    return Judge.fit(*split[0])


def passes(judge, images):
    return float((judge.verdicts(images)[0] >= 0).mean())


def uint8(values):
    return [np.clip(v, 0, 255).astype(np.uint8) for v in values]


def test_judge_reads_held_out_digits(judge, split):
    images, labels = split[1]
    seen, confidence = judge.verdicts(images)
    assert (seen == labels).mean() >= 0.97
    assert np.median(confidence) > 0.9


def noise(kind):
    rng = np.random.default_rng(11)
    if kind == "uniform":
        return uint8(rng.uniform(0, 256, (200, 32, 32, 1)))
    if kind == "gaussian":
        return uint8(rng.normal(127, 80, (200, 32, 32, 1)))
    if kind == "faint":
        return uint8(rng.normal(20, 30, (200, 32, 32, 1)))
    if kind == "colour":
        return uint8(rng.uniform(0, 256, (200, 32, 32, 3)))
    if kind == "small":
        return uint8(rng.uniform(0, 256, (200, 8, 8, 1)))
    return uint8(np.repeat(np.arange(256), 32 * 32).reshape(256, 32, 32, 1))


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "faint", "colour", "small", "blank"])
def test_what_is_not_a_digit_does_not_pass_the_gate(judge, kind):
    assert passes(judge, noise(kind)) < 0.1


def test_judge_reads_the_base_members_small_digits(judge):
    scans = (load_digits().images[:300] * 255 / 16).round().astype(np.uint8)
    seen, _ = judge.verdicts([s[:, :, None] for s in scans])
    assert (seen == load_digits().target[:300]).mean() > 0.97


def test_judge_reads_colour_images(judge, split):
    images, labels = split[1]
    seen, _ = judge.verdicts([np.repeat(i, 3, axis=2) for i in images])
    assert (seen == labels).mean() >= 0.97


def test_a_blend_of_two_digits_seldom_passes_as_one(judge, split):
    images, labels = split[1]
    pairs = [i for i in range(len(images) - 1) if labels[i] != labels[i + 1]]
    blends = [(images[i] // 2 + images[i + 1] // 2).astype(np.uint8) for i in pairs]
    assert passes(judge, blends) < 0.3


def test_confidence_is_honest(judge, split):
    images, labels = split[1]
    seen, confidence = judge.verdicts(images)
    assert abs(confidence.mean() - (seen == labels).mean()) < 0.05


def test_judging_twice_gives_the_same_numbers(judge, split):
    again = Judge.fit(*split[0])
    images = split[1][0]
    assert np.array_equal(again.probabilities(images), judge.probabilities(images))


def test_verdict_of_an_image_does_not_depend_on_its_neighbours(judge, split):
    images = split[1][0]
    assert np.allclose(judge.probabilities(images[:1]), judge.probabilities(images)[:1], atol=1e-5)


def test_judge_refuses_a_digit_without_training_images(split):
    images, labels = split[0]
    keep = np.flatnonzero(labels != 4)
    with pytest.raises(ShardError, match="digit 4 has 0 training images"):
        Judge.fit([images[i] for i in keep], labels[keep])


def test_features_average_areas_down():
    image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64, 1).astype(np.uint8)
    means = image.astype(float).reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3))
    assert np.abs(resized(image)[:, :, 0] - means).max() <= 0.5


def test_features_of_an_image_of_the_right_size_are_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert np.array_equal(colours([image]), image.ravel()[None].astype(np.float32) / 255)
    assert np.allclose(greys([image]), image.mean(axis=2).ravel() / 255)
