"""Conversions between x0 and the five outputs, in float64."""

import pytest
import torch

from imagen.diffusion.prediction import diffuse, from_x0, input_scale, target, to_x0
from imagen.diffusion.schedule import alpha_sigma

KINDS = ("v", "eps", "x0", "edm", "flow")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(81, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.fixture
def levels():
    """alpha, sigma of 81 log-SNRs that cover every schedule, each for one image."""
    logsnr = torch.linspace(-20, 20, 81, dtype=torch.float64)
    return [z[:, None, None, None] for z in alpha_sigma(logsnr)]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_round_trip_at_every_noise_level(kind, images, levels):
    x0, eps = images
    xt = diffuse(x0, eps, *levels)
    out = target(kind, x0, eps, *levels)
    torch.testing.assert_close(to_x0(kind, out, xt, *levels), x0, atol=1e-10, rtol=0)
    torch.testing.assert_close(from_x0(kind, x0, xt, *levels), out, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["v", "x0", "edm", "flow"])
def test_predictions_round_trip_at_zero_snr(kind, images):
    x0, eps = images
    level = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    out = target(kind, x0, eps, *level)
    torch.testing.assert_close(to_x0(kind, out, eps, *level), x0, atol=1e-12, rtol=0)


def test_edm_is_table_1_in_its_own_coordinates(images, levels):
    x0, eps = images
    alpha, sigma = levels
    noise, data = sigma / alpha, 0.5  # Karras et al.'s sigma and sigma_data
    x = x0 + noise * eps
    c_skip = data**2 / (noise**2 + data**2)
    c_out = noise * data / (noise**2 + data**2).sqrt()
    c_in = 1 / (noise**2 + data**2).sqrt()
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    xt = alpha * x
    ours = to_x0("edm", output, xt, alpha, sigma)
    torch.testing.assert_close(ours, c_skip * x + c_out * output, atol=1e-8, rtol=1e-10)
    torch.testing.assert_close(input_scale("edm", alpha, sigma) * xt, c_in * x)
    torch.testing.assert_close(target("edm", x0, eps, alpha, sigma), (x0 - c_skip * x) / c_out)


def test_input_and_target_of_edm_have_unit_variance_for_data_of_its_deviation(levels):
    generator = torch.Generator().manual_seed(2)
    x0, eps = torch.randn(2, 81, 1, 100, 100, generator=generator, dtype=torch.float64)
    x0 = 0.5 * x0
    for z in (
        input_scale("edm", *levels) * diffuse(x0, eps, *levels),
        target("edm", x0, eps, *levels),
    ):
        torch.testing.assert_close(z.std(dim=(1, 2, 3)), torch.ones(81).double(), atol=0.03, rtol=0)


def test_flow_is_x_minus_s_u_in_its_own_coordinates(images, levels):
    x0, eps = images
    alpha, sigma = levels
    s = sigma / (alpha + sigma)
    x = (1 - s) * x0 + s * eps  # rectified flow's own interpolation
    u = target("flow", x0, eps, alpha, sigma)
    torch.testing.assert_close(u, eps - x0)
    ours = to_x0("flow", u, diffuse(x0, eps, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(ours, x - s * u)


@pytest.mark.parametrize("kind", ["v", "eps", "x0", "flow"])
def test_the_input_is_scaled_for_edm_only(kind, levels):
    assert torch.equal(input_scale(kind, *levels), torch.ones_like(levels[0]))
