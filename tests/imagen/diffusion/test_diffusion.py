"""Laws of schedule, predictions, guidance and thresholding, in float64."""

import pytest
import torch

from imagen.diffusion.guidance import dynamic_threshold, guide
from imagen.diffusion.prediction import diffuse, from_x0, target, to_x0
from imagen.diffusion.schedule import LOGSNR_MAX, alpha_sigma, cosine_logsnr


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_logsnr_falls_strictly_between_its_ends():
    logsnr = cosine_logsnr(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (logsnr.diff() < 0).all()
    torch.testing.assert_close(logsnr[[0, -1]], torch.tensor([LOGSNR_MAX, -LOGSNR_MAX]).double())


def test_logsnr_in_the_middle_is_the_textbook_cosine():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, _ = alpha_sigma(cosine_logsnr(t))
    torch.testing.assert_close(alpha, torch.cos(torch.pi * t / 2), atol=1e-3, rtol=0)


def test_schedule_is_variance_preserving():
    alpha, sigma = alpha_sigma(torch.linspace(-20, 20, 101, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101).double(), atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_predictions_round_trip(kind, t, images):
    x0, eps = images
    alpha, sigma = alpha_sigma(cosine_logsnr(torch.tensor(t)))
    xt = diffuse(x0, eps, alpha, sigma)
    out = target(kind, x0, eps, alpha, sigma)
    torch.testing.assert_close(to_x0(kind, out, xt, alpha, sigma), x0, atol=1e-10, rtol=0)
    torch.testing.assert_close(from_x0(kind, x0, xt, alpha, sigma), out, atol=1e-10, rtol=0)


def test_guidance_of_one_and_zero_are_the_two_predictions(images):
    cond, uncond = images
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 3.0), uncond + 3 * (cond - uncond))


def test_threshold_leaves_images_in_range_as_they_are(images):
    x0 = images[0].clamp(-1, 1)
    assert torch.equal(dynamic_threshold(x0, 0.995), x0)


def test_threshold_brings_each_image_into_range_by_its_own_scale(images):
    x0 = images[0] * torch.tensor([0.1, 1.0, 10.0, 100.0]).double()[:, None, None, None]
    out = dynamic_threshold(x0, 0.9)
    assert out.abs().max() <= 1
    assert torch.equal(out[0], x0[0])
    torch.testing.assert_close(out[2], dynamic_threshold(x0[2:3], 0.9)[0])
    assert (out[3].abs() == 1).double().mean() == pytest.approx(0.1, abs=0.01)
