"""Features of log-SNR, which have ends."""

import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig
from imagen.diffusion.schedule import schedule, train_logsnr
from imagen.inputs import LOGSNR_LEAST, LOGSNR_MOST, features


def test_the_start_at_zero_terminal_snr_has_the_features_that_training_ends_at():
    config = DiffusionConfig(zero_terminal_snr=True)
    start = schedule(config)(torch.ones(1, dtype=torch.float64))
    assert start.item() == -math.inf
    # of 4,096 images an even spread of times has one or two here
    last = train_logsnr(config, torch.tensor([1 - 1 / 8192], dtype=torch.float64))
    assert last < LOGSNR_LEAST
    assert torch.equal(features(start), features(last))


@pytest.mark.parametrize("name", ["cosine", "linear", "edm", "rectified"])
def test_levels_of_every_schedule_keep_features_of_their_own(name):
    logsnr = schedule(DiffusionConfig(schedule=name))(torch.linspace(0, 1, 50).double())
    assert logsnr.min() >= LOGSNR_LEAST - 1e-9
    assert logsnr.max() <= LOGSNR_MOST
    told = features(logsnr)
    assert (told.diff(dim=0).abs().amax(dim=1) > 1e-3).all()


def test_features_beyond_the_limits_are_those_of_the_limits():
    ends = torch.tensor([LOGSNR_LEAST, -15.5, -math.inf, LOGSNR_MOST, 21.0, math.inf])
    told = features(ends.double())
    assert torch.equal(told[:3], told[:1].expand(3, -1))
    assert torch.equal(told[3:], told[3:4].expand(3, -1))
    assert (told[0] - told[3]).abs().max() > 0.1
