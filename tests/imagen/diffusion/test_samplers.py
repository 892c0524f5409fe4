"""The optimal denoiser of Gaussian data is known: samplers are checked against exact answers."""

import pytest
import torch

from imagen.diffusion.samplers import SAMPLERS, uniform_times
from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr

MEAN, STD = 0.3, 0.4


def optimal(xt, t):
    """E[x0 | xt] for x0 ~ N(MEAN, STD^2)."""
    alpha, sigma = alpha_sigma(cosine_logsnr(torch.tensor(t)))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (xt - alpha * MEAN)


def exact(x1):
    """Where the probability flow carries x1, from the first time to the last."""
    (alpha, sigma), (alpha0, sigma0) = (
        alpha_sigma(cosine_logsnr(torch.tensor(t))) for t in (1.0, 0.0)
    )
    scale = (alpha0**2 * STD**2 + sigma0**2).sqrt() / (alpha**2 * STD**2 + sigma**2).sqrt()
    return alpha0 * MEAN + scale * (x1 - alpha * MEAN)


@pytest.fixture
def noise():
    return torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("name", "tolerance"), [("ddim", 0.05), ("dpmpp_2m", 0.02)])
def test_sampler_reproduces_mean_and_deviation(name, tolerance, noise):
    images = SAMPLERS[name](optimal, noise, uniform_times(32))
    assert images.mean().item() == pytest.approx(MEAN, abs=tolerance)
    assert images.std().item() == pytest.approx(STD, abs=tolerance)


@pytest.mark.parametrize(("name", "ratio"), [("ddim", 3.2), ("dpmpp_2m", 6.0)])
def test_error_falls_with_steps_faster_for_the_second_order_sampler(name, ratio, noise):
    def error(steps):
        return (SAMPLERS[name](optimal, noise, uniform_times(steps)) - exact(noise)).abs().max()

    # four times the steps: 4 at first order; 2M has first-order first and last steps, so not 16
    assert error(64) / error(256) > ratio


def test_the_second_order_sampler_is_nearer_at_equal_steps(noise):
    errors = {
        n: (SAMPLERS[n](optimal, noise, uniform_times(16)) - exact(noise)).abs().max()
        for n in SAMPLERS
    }
    assert errors["dpmpp_2m"] < errors["ddim"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_is_one_call_and_is_told(name, noise):
    calls, told = [], []
    SAMPLERS[name](
        lambda xt, t: calls.append(t) or optimal(xt, t), noise[:1], uniform_times(5), told.append
    )
    assert calls == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_returns_what_the_denoiser_says(name, noise):
    torch.testing.assert_close(
        SAMPLERS[name](optimal, noise, uniform_times(1)), optimal(noise, 1.0)
    )
