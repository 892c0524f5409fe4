"""Nothing is left behind on the CPU: on the meta device, mixing devices is an error."""

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig, SamplingConfig
from imagen.diffusion.discrete import alphas_cumprod, schedule_of
from imagen.diffusion.editing import noised, repaint
from imagen.diffusion.guidance import ProjectedGuidance, guide, threshold
from imagen.diffusion.losses import elementwise, weight
from imagen.diffusion.samplers import SAMPLERS, run
from imagen.diffusion.schedule import schedule, train_logsnr
from imagen.diffusion.spacing import path

pytestmark = pytest.mark.slow  # the first operation on the meta device imports for seconds

X = torch.empty(2, 3, 4, 4, device="meta")


def denoise(xt, logsnr):
    cond, uncond = xt * logsnr, xt / 2
    guided = ProjectedGuidance()(cond, uncond, 3.0) + guide(cond, uncond, 3.0)
    return threshold(SamplingConfig(threshold_cap=2.0), guided)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_stay_on_the_images_device(name):
    value = None if SAMPLERS[name].knob is None else 0.5
    config = SamplingConfig(sampler=name, stochasticity=value)
    levels = path(schedule(DiffusionConfig(zero_terminal_snr=True)), 4)
    out = run(config, denoise, X, levels, lambda _: torch.empty_like(X))
    assert (out.device, out.shape, out.dtype) == (X.device, X.shape, X.dtype)


def test_editing_stays_on_the_images_device():
    levels = path(schedule(DiffusionConfig()), 4)
    out = repaint(denoise, X, levels, X, X[:, :1], noise=lambda _: torch.empty_like(X))
    assert out.device == noised(X, -1.0, X).device == X.device


@pytest.mark.parametrize("name", ["cosine", "linear", "edm", "rectified"])
@pytest.mark.parametrize("weighting", ["none", "min_snr", "edm", "sigmoid", "v"])
@pytest.mark.parametrize("zero", [False, True])
def test_training_stays_on_the_times_device(name, weighting, zero):
    config = DiffusionConfig(schedule=name, weighting=weighting, zero_terminal_snr=zero)
    logsnr = train_logsnr(config, torch.empty(5, dtype=torch.float64, device="meta"))
    factor = weight(config, logsnr)
    assert (factor.device, factor.shape, factor.dtype) == (X.device, (5,), torch.float64)


def test_losses_and_numbered_schedules_stay_on_their_device():
    assert {elementwise(kind, X).device for kind in ("l2", "l1", "huber")} == {X.device}
    curve = schedule_of(alphas_cumprod(schedule(DiffusionConfig()), 10))
    assert curve(torch.empty(5, device="meta")).device == X.device
