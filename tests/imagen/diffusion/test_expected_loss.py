"""The loss against the one expected of the best possible network, written out from scratch.

For data x0 ~ N(MEAN, STD^2), pixel by pixel, all of it is known in closed form: the best output of
each prediction, and the error that it is left with. Nothing of `imagen` is used to compute them.
"""

import dataclasses
import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.member import MemberConfig, TrainBatch, loss

MEAN, STD, ROWS = 0.2, 0.3, 400
PREDICTIONS = ["v", "eps", "x0", "edm", "flow"]
LEAST, MOST = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))


def noise_at(schedule, t):
    """Return sigma / alpha, EDM's sigma, at time t."""
    if schedule == "cosine":  # tan of an angle that t divides evenly
        return math.tan(LEAST + t * (MOST - LEAST))
    return (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7


def factors(noise):
    """Return what the error of each output is, in errors of x0 at a given xt."""
    alpha, sigma = 1 / math.hypot(1, noise), noise / math.hypot(1, noise)
    return {
        "x0": 1.0,
        "eps": -alpha / sigma,  # eps = (xt - alpha x0) / sigma
        "v": -1 / sigma,  # alpha eps - sigma x0 = (alpha xt - x0) / sigma
        "flow": -(alpha + sigma) / sigma,  # eps - x0
        "edm": math.hypot(noise, 0.5) / (noise * 0.5),  # F = (x0 - c_skip x) / c_out
    }


def weights(noise, falling):
    """Return the weight of the squared error of x0, by the papers; `falling`: -d logsnr / dt."""
    snr = noise**-2
    return {
        "min_snr": min(snr, 5),
        "edm": (noise**2 + 0.25) / (noise * 0.5) ** 2,
        "v": 1 + snr,  # 1 / sigma^2
        "sigmoid": 0.5
        * falling
        * snr
        / (1 + math.exp(-math.log(noise**2) - 2)),  # sigmoid(2 - logsnr)
    }


class Best(torch.nn.Module):
    """Puts out the mean of its target given x, plus `off`, at the one noise level it knows."""

    def __init__(self, prediction, noise, off=0.0):
        super().__init__()
        self.prediction, self.noise, self.off = prediction, noise, off

    def forward(self, x, _):
        noise = self.noise
        alpha, sigma = 1 / math.hypot(1, noise), noise / math.hypot(1, noise)
        if self.prediction == "edm":  # c_in (x0 + noise eps) is what EDM's network sees
            x = x * math.hypot(noise, 0.5) * alpha
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        skip = 0.25 / (noise**2 + 0.25)
        out = {
            "x0": x0,
            "eps": eps,
            "v": alpha * eps - sigma * x0,
            "flow": eps - x0,
            "edm": (x0 - skip * x / alpha) / (noise * 0.5 / math.hypot(noise, 0.5)),
        }
        return out[self.prediction] + self.off


def found(member, net, t):
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(ROWS, 1, 8, 8, generator=generator)
    eps = torch.randn(ROWS, 1, 8, 8, generator=generator)
    times, keep = torch.full((ROWS,), t, dtype=torch.float64), torch.ones(ROWS)
    return loss(net, member, TrainBatch(x0=x0, eps=eps, t=times, text=None, keep=keep)).mean()


@pytest.fixture(params=[0.1, 0.4, 0.7, 0.95])
def t(request):
    return request.param


def best_error(noise):
    """Return the variance of x0 given xt."""
    return STD**2 * noise**2 / (STD**2 + noise**2)


@pytest.mark.parametrize("off", [0.0, 0.3])
@pytest.mark.parametrize("schedule", ["cosine", "edm"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_best_output_of_each_prediction_has_the_loss_that_is_expected(
    toy, prediction, schedule, t, off
):
    member = diffusing(toy, prediction=prediction, schedule=schedule)
    noise = noise_at(schedule, t)
    expected = factors(noise)[prediction] ** 2 * best_error(noise) + off**2
    # the mean of 25,600 squares; 4 standard errors are 3.5 percent
    assert found(member, Best(prediction, noise, off), t).item() == pytest.approx(
        expected, rel=0.035
    )


@pytest.mark.parametrize("weighting", ["min_snr", "edm", "v", "sigmoid"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weighted_it_is_the_error_of_x0_as_the_papers_weigh_it(toy, prediction, t, weighting):
    member = diffusing(toy, prediction=prediction, weighting=weighting)
    noise, h = noise_at("cosine", t), 1e-5
    falling = (math.log(noise_at("cosine", t + h)) - math.log(noise_at("cosine", t - h))) / h
    expected = weights(noise, falling)[weighting] * best_error(noise)
    found_loss = found(member, Best(prediction, noise), t).item()
    assert found_loss == pytest.approx(expected, rel=0.035)


def diffusing(toy, **keys) -> MemberConfig:
    return dataclasses.replace(toy.BARE, diffusion=DiffusionConfig(**keys))
