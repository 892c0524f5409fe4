import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig, SamplingConfig
from imagen.diffusion.guidance import (
    APG_MOMENTUM,
    APG_NORM,
    ProjectedGuidance,
    dynamic_threshold,
    guide,
    scale_at,
    static_threshold,
    threshold,
)
from imagen.diffusion.schedule import schedule

HAND = torch.tensor([-3.0, 1.0, 0.5], dtype=torch.float64)[None, None, None]


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_guidance_of_one_and_zero_are_the_two_predictions(images):
    cond, uncond = images
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 3.0), uncond + 3 * (cond - uncond))


def test_projected_guidance_of_one_is_the_conditional_prediction(images):
    assert torch.equal(ProjectedGuidance()(*images, 1.0), images[0])


def test_projected_guidance_moves_at_right_angles_and_no_further_than_its_bound(images):
    cond, uncond = images
    move = ProjectedGuidance()(cond, uncond, 11.0) - cond
    along = (move * cond).sum(dim=(1, 2, 3)) / (move.norm() * cond.norm())
    assert along.abs().max() < 1e-12
    assert (move.square().mean(dim=(1, 2, 3)).sqrt() <= 10 * APG_NORM + 1e-12).all()
    near = cond + 1e-3 * uncond  # within the bound: exactly the part at right angles
    part = cond - near
    part = part - cond * ((part * cond).sum((1, 2, 3)) / cond.square().sum((1, 2, 3))).view(
        4, 1, 1, 1
    )
    torch.testing.assert_close(ProjectedGuidance()(cond, near, 11.0), cond + 10 * part)


def test_projected_guidance_remembers_its_own_trajectory_only(images):
    cond, uncond = (1e-3 * image for image in images)
    project = ProjectedGuidance()
    first, second = project(cond, uncond, 3.0), project(cond, uncond, 3.0)
    assert torch.equal(ProjectedGuidance()(cond, uncond, 3.0), first)
    torch.testing.assert_close(second - cond, (1 + APG_MOMENTUM) * (first - cond))


def test_projected_guidance_keeps_images_apart_and_survives_a_black_one(images):
    cond, uncond = images
    cond = cond * torch.tensor([0.0, 1, 1, 1]).double().view(4, 1, 1, 1)
    together = ProjectedGuidance()(cond, uncond, 5.0)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together[2:3], ProjectedGuidance()(cond[2:3], uncond[2:3], 5.0))


@pytest.mark.parametrize("zero", [False, True])
def test_text_is_guided_inside_the_interval_of_times_only(zero):
    curve = schedule(DiffusionConfig(zero_terminal_snr=zero))
    config = SamplingConfig(guidance_scale=4.0, guidance_interval=(0.25, 0.75))
    for t, scale in ((0.0, 1.0), (0.24, 1.0), (0.26, 4.0), (0.5, 4.0), (0.74, 4.0), (0.76, 1.0)):
        logsnr = curve(torch.tensor(t, dtype=torch.float64)).item()
        assert scale_at(config, curve, logsnr) == scale
    assert scale_at(config, curve, -math.inf) == 1.0


def test_an_interval_that_reaches_an_end_has_none():
    curve = schedule(DiffusionConfig())
    whole = SamplingConfig(guidance_scale=4.0)
    assert {scale_at(whole, curve, logsnr) for logsnr in (-math.inf, -16.0, 0.0, 16.0)} == {4.0}
    late = SamplingConfig(guidance_scale=4.0, guidance_interval=(0.0, 0.5))
    assert [scale_at(late, curve, logsnr) for logsnr in (-0.1, 0.1, 99.0)] == [1.0, 4.0, 4.0]


def test_static_threshold_clips():
    assert static_threshold(HAND).flatten().tolist() == [-1, 1, 0.5]


@pytest.mark.parametrize(
    ("percentile", "cap", "expected"),
    [
        (1.0, None, [-1, 1 / 3, 1 / 6]),
        (0.75, None, [-1, 0.5, 0.25]),  # |x| at 3/4 is half way from 1 to 3
        (0.5, None, [-1, 1, 0.5]),
        (0.01, None, [-1, 1, 0.5]),  # never less than 1
        (1.0, 2.0, [-1, 0.5, 0.25]),
        (1.0, 1.0, [-1, 1, 0.5]),  # the static threshold
    ],
)
def test_dynamic_threshold_by_hand(percentile, cap, expected):
    out = dynamic_threshold(HAND, percentile, cap).flatten().tolist()
    assert out == pytest.approx(expected, abs=1e-12)


SHAPES = [(1, 1, 1, 1), (2, 1, 1, 2), (3, 3, 5, 7), (2, 3, 64, 64), (1, 3, 256, 256)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("percentile", [0.01, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic_threshold_divides_by_the_quantile_that_torch_sorts_for(shape, percentile, dtype):
    generator = torch.Generator().manual_seed(0)
    # all beyond 1, so that the quantile shows, and rounded, so that many are equal
    x0 = 1.5 + torch.randn(shape, generator=generator, dtype=torch.float64).abs()
    x0 = (x0 * 64).round().div(64).to(dtype)
    s = torch.quantile(x0.double().flatten(1), percentile, dim=1)[:, None, None, None]
    out = dynamic_threshold(x0, percentile)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), x0.double().clamp(max=s) / s, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_dynamic_threshold_takes_images_that_are_too_large_for_torchs_quantile():
    n = 4 * 2049 * 2049  # above 2^24
    x0 = 1 + torch.arange(n, dtype=torch.float64).flip(0).view(1, 4, 2049, 2049) / n
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x0.flatten(1), 0.995, dim=1)
    s = 1 + 0.995 * (n - 1) / n
    torch.testing.assert_close(dynamic_threshold(x0, 0.995), x0.clamp(max=s) / s)


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


def saturated(x0):
    return (x0.abs() >= 1).double().mean().item()


def test_at_scale_10_dynamic_saturates_less_than_static_and_projected_less_than_plain(images):
    cond, uncond = (image.tanh() for image in images)
    plain = guide(cond, uncond, 10.0)
    projected = ProjectedGuidance()(cond, uncond, 10.0)
    assert saturated(static_threshold(plain)) > 0.8
    assert saturated(dynamic_threshold(plain, 0.995)) < 0.02
    assert saturated(static_threshold(projected)) < 0.6 * saturated(static_threshold(plain))


def test_threshold_follows_the_config():
    capped = SamplingConfig(threshold_percentile=1.0, threshold_cap=2.0)
    assert torch.equal(threshold(capped, HAND), dynamic_threshold(HAND, 1.0, 2.0))
    assert torch.equal(threshold(SamplingConfig(threshold="static"), HAND), static_threshold(HAND))
    assert torch.equal(threshold(SamplingConfig(threshold="none"), HAND), HAND)
