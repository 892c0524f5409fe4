"""Two moons end to end: the optimal denoiser of a mixture of Gaussians along two arcs."""

import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig, SamplingConfig
from imagen.diffusion.samplers import SAMPLERS, run
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path

STD = 0.05


def arcs(num):
    """Return points (2, num, 2) along the two moons, within [-1, 1]."""
    angle = torch.linspace(0, math.pi, num, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    return (torch.stack([upper, lower]) - torch.tensor([0.5, 0.25])) / 1.5


CENTRES = arcs(40).flatten(0, 1)


def denoise(xt, logsnr):
    """E[x0 | xt] of an even mixture of N(centre, STD^2)."""
    alpha = math.sqrt(1 / (1 + math.exp(-logsnr)))
    variance = (alpha * STD) ** 2 + 1 / (1 + math.exp(logsnr))
    x = xt.flatten(1)
    away = x[:, None] - alpha * CENTRES
    share = torch.softmax(-away.square().sum(dim=2) / (2 * variance), dim=1)
    mean = share @ CENTRES
    return (mean + alpha * STD**2 / variance * (x - alpha * mean)).view_as(xt)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule_name", ["cosine", "edm"])
def test_samples_land_on_both_moons_equally(name, schedule_name, normals):
    noise = normals(11, (1000, 1, 1, 2))
    spacing = "karras" if schedule_name == "edm" else "time"
    levels = path(schedule(DiffusionConfig(schedule=schedule_name)), 32, spacing)
    out = run(SamplingConfig(sampler=name), denoise, noise(999), levels, noise).flatten(1)
    distance = torch.cdist(out, arcs(400).flatten(0, 1))
    assert (distance.min(dim=1).values < 4 * STD).double().mean() > 0.99
    upper = (distance.argmin(dim=1) < 400).double().mean().item()
    assert upper == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 1000))  # four standard errors
    # along the moons, too: each tenth of the upper arc gets about a tenth of its samples
    angle = distance[:, :400].argmin(dim=1)[distance.argmin(dim=1) < 400] / 400
    shares = torch.histc(angle.double(), bins=10, min=0, max=1) / len(angle)
    assert shares.min() > 0.04
    assert shares.max() < 0.18
