import pytest
import torch

from train import ema


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
