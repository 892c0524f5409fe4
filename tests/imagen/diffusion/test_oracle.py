"""Samplers against exact answers: the optimal denoiser of Gaussian data is known.

With it every sampler is affine in its starting noise and its fresh noise, so the mean and the
covariance of what it makes can be read off exactly, without drawing samples.
"""

import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.samplers import SAMPLERS
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path

SCHEDULES = {
    "cosine": DiffusionConfig(),
    "zero terminal": DiffusionConfig(zero_terminal_snr=True),
    "linear": DiffusionConfig(schedule="linear"),
    "edm": DiffusionConfig(schedule="edm"),
    "rectified": DiffusionConfig(schedule="rectified"),
    "shifted": DiffusionConfig(logsnr_shift=-2.8),
}
STOCHASTIC = [
    ("ddpm", 0.0),
    ("ddpm", 0.3),
    ("ddpm", 1.0),
    ("ddim", 0.5),
    ("ddim", 1.0),
    ("dpmpp_2m_sde", 0.5),
    ("dpmpp_2m_sde", 1.0),
]


def made(gaussian, name, levels, knob=None):
    """Return the exact mean (2,) and covariance (2, 2) of what a sampler makes."""
    count = len(levels) - 1
    rows = torch.eye(2 * (count + 1), dtype=torch.float64)  # a unit in one noise each
    rows = torch.cat([torch.zeros_like(rows[:1]), rows]).view(-1, count + 1, 1, 1, 2)
    kwargs = {} if knob is None else {SAMPLERS[name].knob: knob, "noise": lambda i: rows[:, i + 1]}
    out = SAMPLERS[name].function(gaussian.denoise, rows[:, 0], levels, **kwargs).flatten(1)
    answers = out[1:] - out[0]
    return out[0], answers.T @ answers


def error(gaussian, name, levels, knob=None):
    mean, cov = made(gaussian, name, levels, knob)
    return max((mean - gaussian.mean).abs().max().item(), (cov - gaussian.cov).abs().max().item())


def slope(errors):
    """Order at which errors fall, each with twice the steps of the one before."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize(
    ("name", "tolerance"), [("ddim", 0.03), ("euler", 0.03), ("dpmpp_2m", 0.006), ("heun", 0.006)]
)
def test_deterministic_samplers_reproduce_mean_and_covariance(
    schedule_name, name, tolerance, gaussian
):
    levels = path(schedule(SCHEDULES[schedule_name]), 64, "logsnr")
    assert error(gaussian, name, levels) < tolerance


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize(("name", "knob"), STOCHASTIC)
def test_stochastic_samplers_reproduce_mean_and_covariance(schedule_name, name, knob, gaussian):
    levels = path(schedule(SCHEDULES[schedule_name]), 64, "logsnr")
    assert error(gaussian, name, levels, knob) < (0.01 if name == "dpmpp_2m_sde" else 0.06)


@pytest.mark.parametrize("schedule_name", ["cosine", "edm", "rectified", "zero terminal"])
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("heun", 2)]
)
def test_error_against_the_flow_falls_at_the_samplers_order(
    schedule_name, name, order, gaussian, normals
):
    x = normals(0, (50, 1, 1, 2))(0)
    errors = []
    for steps in (32, 64, 128):
        levels = path(schedule(SCHEDULES[schedule_name]), steps, "logsnr")
        out = SAMPLERS[name].function(gaussian.denoise, x, levels)
        errors.append((out - gaussian.flow(x, levels[0])).abs().max().item())
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("name", "knob"), STOCHASTIC)
def test_covariance_of_stochastic_samplers_falls_at_their_order(name, knob, gaussian):
    errors = [
        error(gaussian, name, path(schedule(DiffusionConfig()), steps, "logsnr"), knob)
        for steps in (64, 128, 256)
    ]
    assert slope(errors) == pytest.approx(2 if name == "dpmpp_2m_sde" else 1, abs=0.1)


@pytest.mark.parametrize("name", ["heun", "euler"])
def test_churn_costs_no_more_than_its_extra_noise(name, gaussian):
    """S_noise 1.003 makes EDM's churn a little noisier than the flow, on purpose."""
    levels = path(schedule(DiffusionConfig(schedule="edm")), 128, "karras")
    plain, churned = error(gaussian, name, levels), error(gaussian, name, levels, 20.0)
    assert churned < plain + 0.02


def test_second_order_samplers_are_nearer_at_few_steps(gaussian):
    for spacing in ("time", "logsnr", "karras"):
        levels = path(schedule(DiffusionConfig(schedule="edm")), 16, spacing)
        errors = {name: error(gaussian, name, levels) for name in ("ddim", "dpmpp_2m", "heun")}
        assert max(errors["dpmpp_2m"], errors["heun"]) < errors["ddim"] / 2


@pytest.mark.parametrize(("name", "knob"), [*STOCHASTIC, ("heun", 20.0), ("euler", 20.0)])
def test_drawn_samples_have_the_mean_and_covariance(name, knob, gaussian, normals):
    noise = normals(3, (10_000, 1, 1, 2))
    levels = path(schedule(DiffusionConfig(schedule="edm")), 48, "karras")
    kwargs = {SAMPLERS[name].knob: knob, "noise": noise}
    out = SAMPLERS[name].function(gaussian.denoise, noise(999), levels, **kwargs).flatten(1)
    # four standard errors of 10,000 draws are 0.02 for the mean and 0.014 for the covariance
    torch.testing.assert_close(out.mean(0), gaussian.mean, atol=0.02, rtol=0)
    tolerance = 0.02 if name in ("dpmpp_2m_sde", "heun") else 0.07  # first order: 48 steps are few
    torch.testing.assert_close(out.T.cov(), gaussian.cov, atol=tolerance, rtol=0)
