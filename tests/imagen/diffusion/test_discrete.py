import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.discrete import alphas_cumprod, betas, schedule_of
from imagen.diffusion.schedule import schedule
from imagen.errors import ConfigError

NAMES = ("cosine", "linear", "edm", "rectified")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", [False, True])
def test_a_schedule_survives_the_trip_through_numbered_steps(name, zero):
    curve = schedule(DiffusionConfig(schedule=name, zero_terminal_snr=zero))
    steps = torch.linspace(0, 1, 100, dtype=torch.float64)
    back = schedule_of(alphas_cumprod(curve, 100))
    torch.testing.assert_close(back(steps), curve(steps), atol=1e-6, rtol=0)
    between = torch.linspace(0.05, 0.95, 333, dtype=torch.float64)
    fine = schedule_of(alphas_cumprod(curve, 1000))
    torch.testing.assert_close(fine(between), curve(between), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_betas_multiply_to_the_alphas(name):
    alphas = alphas_cumprod(schedule(DiffusionConfig(schedule=name)), 50)
    steps = betas(alphas)
    assert ((steps > 0) & (steps < 1)).all()
    torch.testing.assert_close(torch.cumprod(1 - steps, 0), alphas)


def test_the_last_beta_of_zero_terminal_snr_is_one():
    alphas = alphas_cumprod(schedule(DiffusionConfig(zero_terminal_snr=True)), 10)
    assert (alphas[-1].item(), betas(alphas)[-1].item()) == (0.0, 1.0)
    assert schedule_of(alphas)(torch.tensor(1.0)).item() == -math.inf


def test_ddpms_betas_become_a_schedule():
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    curve = schedule_of(alphas)
    t = torch.tensor([0, 500, 999], dtype=torch.float64) / 999
    torch.testing.assert_close(torch.sigmoid(curve(t)), alphas[[0, 500, 999]])


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.5], [0.5, -0.1]])
def test_what_is_no_schedule_is_refused(values):
    with pytest.raises(ConfigError, match=r"alphas_cumprod of \d steps are not two or more that f"):
        schedule_of(torch.tensor(values))


def test_a_schedule_of_one_step_is_refused():
    with pytest.raises(ConfigError, match="a discrete schedule of 1 steps has no two ends"):
        alphas_cumprod(schedule(DiffusionConfig()), 1)
