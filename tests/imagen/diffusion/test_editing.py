"""Editing: noise levels exactly, harmony against the conditional mean of a Gaussian."""

import math
from itertools import pairwise

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.editing import noised, repaint
from imagen.diffusion.samplers import dpmpp_2m
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path
from imagen.errors import ConfigError

MASK = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)  # the first pixel is kept, the second painted
SCHEDULES = {
    "cosine": DiffusionConfig(),
    "zero terminal": DiffusionConfig(zero_terminal_snr=True),
    "linear": DiffusionConfig(schedule="linear"),
    "edm": DiffusionConfig(schedule="edm"),
    "rectified": DiffusionConfig(schedule="rectified"),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("resample", [1, 3])
def test_the_known_part_has_exactly_the_level_that_the_denoiser_is_told(
    name, resample, gaussian, normals
):
    known, noise = normals(1, (4, 1, 1, 2))(0), normals(2, (4, 1, 1, 2))
    drawn, asked = [], []

    def tell(i):
        drawn.append(noise(i))
        return drawn[-1]

    def denoise(xt, logsnr):
        alpha = math.sqrt(1 / (1 + math.exp(-logsnr))) if logsnr > -100 else 0.0
        sigma = math.sqrt(1 - alpha**2)
        left = xt[..., 0] - alpha * known[..., 0]  # is sigma eps of a noise just drawn
        torch.testing.assert_close(left, sigma * drawn[-1][..., 0], atol=1e-9, rtol=0)
        asked.append(logsnr)
        return gaussian.denoise(xt, logsnr)

    levels = path(schedule(SCHEDULES[name]), 6, "karras" if name == "edm" else "time")
    repaint(denoise, noise(99), levels, known, MASK, noise=tell, resample=resample)
    assert asked == [level for level in levels[:-2] for _ in range(resample)] + [levels[-2]]
    assert len(drawn) == len(asked), "one draw serves what is known and what is painted"


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_painted_has_exactly_the_level_that_the_denoiser_is_told(name):
    """Of data of one value, known to the denoiser, all is alpha x0 + sigma eps.

    Then eps is linear in the draws: from unit draws its variance and covariances are read off.
    """
    x0, told = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64), []
    levels = path(schedule(SCHEDULES[name]), 8, "logsnr")
    draws = 1 + 3 * 7 + 1  # the start, three calls in each step but the last, one there
    units = torch.eye(2 * draws, dtype=torch.float64)
    units = torch.cat([torch.zeros_like(units[:1]), units]).view(-1, draws, 1, 1, 2)

    def denoise(xt, logsnr):
        alpha = math.sqrt(1 / (1 + math.exp(-logsnr))) if logsnr > -100 else 0.0
        told.append((xt - alpha * x0).flatten(1) / math.sqrt(1 - alpha**2))
        return x0.expand_as(xt)

    start = noised(x0, levels[0], units[:, 0])
    repaint(denoise, start, levels, x0, MASK, noise=lambda i: units[:, i + 1], resample=3)
    assert len(told) == draws - 1
    for eps in told:
        torch.testing.assert_close(eps[0], torch.zeros(2).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(eps.T @ eps, torch.eye(2).double(), atol=1e-9, rtol=0)
    for i, (now, then) in enumerate(pairwise(levels[:-1])):
        # to the next level and back: each way keeps sqrt(SNR now / SNR then) of the noise
        again = (told[3 * i][:, 1] * told[3 * i + 1][:, 1]).sum().item()
        onward = (told[3 * i + 2][:, 1] * told[3 * i + 3][:, 1]).sum().item()
        assert again == pytest.approx(math.exp(now - then), abs=1e-9)
        assert onward == pytest.approx(math.exp((now - then) / 2), abs=1e-9)


def test_the_result_keeps_the_known_part_and_counts_its_steps(gaussian, normals):
    known, noise, told = normals(4, (4, 1, 1, 2))(0), normals(5, (4, 1, 1, 2)), []
    levels = path(schedule(DiffusionConfig()), 6)
    out = repaint(
        gaussian.denoise, noise(99), levels, known, MASK, noise=noise, on_step=told.append
    )
    assert torch.equal(out[..., 0], known[..., 0])
    assert not torch.allclose(out[..., 1], known[..., 1], atol=0.01)
    assert told == [0, 1, 2, 3, 4, 5]


def test_all_known_is_returned_and_one_picture_serves_a_batch(gaussian, normals):
    known, noise = normals(6, (1, 1, 1, 2))(0), normals(7, (3, 1, 1, 2))
    levels = path(schedule(DiffusionConfig()), 4)
    out = repaint(gaussian.denoise, noise(99), levels, known, 0 * MASK, noise=noise)
    assert torch.equal(out, known.expand(3, 1, 1, 2))
    painted = repaint(gaussian.denoise, noise(99), levels, known, MASK, noise=noise)
    assert painted[..., 1].unique().numel() == 3


def off(gaussian, normals, resample):
    """Distance of the painted mean from the conditional mean, 1 = where the prior mean is."""
    noise, value = normals(8, (1000, 1, 1, 2)), 0.9
    known = torch.full((1, 1, 1, 2), value, dtype=torch.float64)
    levels = path(schedule(DiffusionConfig(schedule="edm")), 32, "karras")
    out = repaint(
        gaussian.denoise, noise(99_999), levels, known, MASK, noise=noise, resample=resample
    )
    way = gaussian.cov[0, 1] / gaussian.cov[0, 0] * (value - gaussian.mean[0])
    return abs((out[..., 1].mean() - gaussian.mean[1] - way) / way).item()


def test_what_is_painted_agrees_with_what_is_known_more_with_resampling(gaussian, normals):
    once, default, often = (off(gaussian, normals, resample) for resample in (1, 4, 16))
    assert 0.3 < once < 0.5, "without resampling two fifths of the way are missing"
    assert default < 0.17
    assert often < 0.08


def test_resampling_less_than_once_is_refused(gaussian, normals):
    noise = normals(9, (1, 1, 1, 2))
    with pytest.raises(ConfigError, match="resample 0 is less than 1"):
        repaint(gaussian.denoise, noise(0), [0.0, 1.0], noise(1), MASK, noise=noise, resample=0)


@pytest.mark.parametrize("logsnr", [-math.inf, -3.0, 0.0, 12.0])
def test_noised_is_alpha_x0_plus_sigma_eps(logsnr, normals):
    x0, eps = normals(10, (2, 1, 1, 2))(0), normals(10, (2, 1, 1, 2))(1)
    square = 1 / (1 + math.exp(-logsnr)) if logsnr > -100 else 0.0
    expected = math.sqrt(square) * x0 + math.sqrt(1 - square) * eps
    torch.testing.assert_close(noised(x0, logsnr, eps), expected)


def test_variations_stay_nearer_the_picture_the_weaker_they_are(gaussian, normals):
    """Image to image: noise to t = strength, then sample from there."""
    curve, noise = schedule(DiffusionConfig()), normals(12, (500, 1, 1, 2))
    image = gaussian.flow(noise(0), -15.0)
    distances = []
    for strength in (0.2, 0.5, 0.8):
        levels = path(curve, 16, start=strength)
        start = noised(image, levels[0], noise(1))
        out = dpmpp_2m(gaussian.denoise, start, levels)
        distances.append((out - image).square().mean().sqrt().item())
        # variations of pictures of the data are pictures of the data
        torch.testing.assert_close(out.flatten(1).T.cov(), gaussian.cov, atol=0.05, rtol=0)
    assert distances == sorted(distances)
    assert distances[0] < 0.3 < distances[2]
