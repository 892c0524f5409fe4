import numpy as np
import pytest
import torch

from train import ema
from train.job import Inputs
from train.loop import Trainer, World
from train.worker import initial


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1, 0.2, 0.27])
def test_gamma_and_sigma_rel_are_inverse(sigma: float):
    assert ema.sigma_rel(ema.gamma(sigma)) == pytest.approx(sigma, rel=1e-9)


def test_gamma_of_the_papers_examples():
    # arXiv:2312.02696, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94
    assert ema.gamma(0.05) == pytest.approx(16.97, abs=5e-3)
    assert ema.gamma(0.10) == pytest.approx(6.94, abs=5e-3)


def test_the_average_has_a_power_function_profile():
    gamma, steps = 6.94, 400
    weights = torch.eye(steps, dtype=torch.float64)  # step k's "weights": which step it was
    average = [torch.zeros(steps, dtype=torch.float64)]
    for k in range(steps):
        ema.update(average, [weights[k]], ema.beta(gamma, 8 * (k + 1), 8))
    times = torch.arange(1, steps + 1, dtype=torch.float64)
    profile = times ** (gamma + 1) - (times - 1) ** (gamma + 1)
    assert torch.allclose(average[0], profile / profile.sum(), rtol=1e-9)


def test_the_first_step_replaces_the_initial_weights():
    average = [torch.full((3,), 99.0)]
    ema.update(average, [torch.ones(3)], ema.beta(6.94, 8, 8))
    assert torch.equal(average[0], torch.ones(3))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.2])
def test_the_average_is_the_integral_of_the_weights_times_a_power_of_the_time(sigma_rel: float):
    """The definition (arXiv:2312.02696, Eq. 1), by adding up a million slices of time.

    Weights that move once a step: what holds while images (8k, 8(k + 1)] are seen is step k's.
    """
    gamma, steps, slices = ema.gamma(sigma_rel), 50, 20_000
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(steps, 3)))
    average = [torch.zeros(3, dtype=torch.float64)]
    for k in range(steps):
        ema.update(average, [weights[k]], ema.beta(gamma, 8 * (k + 1), 8))
    times = (np.arange(steps * slices) + 0.5) / (steps * slices)
    shares = (times**gamma).reshape(steps, slices).sum(axis=1)
    expected = (shares / shares.sum()) @ weights.numpy()
    assert np.allclose(average[0].numpy(), expected, rtol=1e-6, atol=1e-9)
    spread = (np.arange(steps) * shares).sum() / shares.sum() / steps
    assert spread > 0.7  # the beginning is forgotten


def test_training_keeps_the_weighted_sum_of_the_weights_of_all_its_steps(helpers, project: str):
    """Of a real run: the closed form from the weights after each step, in float64."""
    config = helpers.make_config(project)
    net = initial(config.members["sr1"].network, config.seed)
    world = World(0, 1, torch.device("cpu"))
    one = Trainer(net, config.members["sr1"], config.of("sr1"), world, config.seed)
    data, history = Inputs.open(config, "sr1").samples(config, "sr1"), []
    for step in range(6):
        one.step([data.__getitems__(range(8 * step, 8 * step + 8))])
        history.append([weight.detach().double().clone() for weight in one.weights])
    times = torch.arange(1, 7, dtype=torch.float64)
    power = ema.gamma(0.1) + 1
    shares = (times**power - (times - 1) ** power) / 6**power
    for i, average in enumerate(one.ema):
        expected = sum(share * step[i] for share, step in zip(shares, history, strict=True))
        assert torch.allclose(average.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(average.double(), history[-1][i], rtol=1e-5, atol=1e-7)
