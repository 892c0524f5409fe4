"""Schedules against their closed forms, in float64."""

import math

import pytest
import torch

from imagen.diffusion.config import LOGNORMAL_SCHEDULES, DiffusionConfig
from imagen.diffusion.schedule import (
    LOGSNR_MAX,
    alpha_sigma,
    cosine_logsnr,
    resolution_shift,
    schedule,
    train_logsnr,
)
from imagen.errors import ConfigError

NAMES = ("cosine", "linear", "edm", "rectified")
TIMES = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)


def cut(low, t):
    return low + t * (1 - 2 * low)


def cosine(t):
    angle = math.pi / 2 * cut(2 / math.pi * math.atan(math.exp(-7.5)), t)
    return math.cos(angle) ** 2


def linear(t):
    return math.exp(-(1e-4 + 0.1 * t + 19.9 * t**2 / 2))


def edm(t):
    sigma = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    return 1 / (1 + sigma**2)


def rectified(t):
    s = cut(1 / (1 + math.exp(7.5)), t)
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


@pytest.mark.parametrize("closed", [cosine, linear, edm, rectified])
def test_alpha_squared_is_the_closed_form(closed):
    logsnr = schedule(DiffusionConfig(schedule=closed.__name__))(TIMES)
    expected = torch.tensor([closed(t) for t in TIMES.tolist()], dtype=torch.float64)
    torch.testing.assert_close(torch.sigmoid(logsnr), expected, atol=1e-12, rtol=1e-9)
    assert expected[-1] / (1 - expected[-1]) < 1e-2, "little signal is left at the end"


def test_the_cosine_is_the_textbook_one_but_for_its_ends():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, _ = alpha_sigma(cosine_logsnr(t))
    torch.testing.assert_close(alpha, torch.cos(torch.pi * t / 2), atol=1e-3, rtol=0)
    ends = cosine_logsnr(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([LOGSNR_MAX, -LOGSNR_MAX]).double())


def test_the_linear_schedule_is_the_limit_of_a_thousand_steps():
    steps = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = torch.linspace(0, 1, 1000, dtype=torch.float64)
    ours = torch.sigmoid(schedule(DiffusionConfig(schedule="linear"))(times))
    torch.testing.assert_close(ours, steps, atol=2e-3, rtol=0)
    assert ours[0].item() == pytest.approx(steps[0].item(), abs=1e-8)


def test_flow_time_of_the_rectified_schedule_is_t():
    alpha, sigma = alpha_sigma(schedule(DiffusionConfig(schedule="rectified"))(TIMES[1:4]))
    torch.testing.assert_close(sigma / (alpha + sigma), TIMES[1:4], atol=3e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [0.0, -5.5])
@pytest.mark.parametrize("zero", [False, True])
def test_logsnr_falls_strictly(name, shift, zero):
    config = DiffusionConfig(schedule=name, logsnr_shift=shift, zero_terminal_snr=zero)
    logsnr = schedule(config)(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert logsnr.dtype == torch.float64
    assert (logsnr.diff() < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_is_exact_and_keeps_the_clean_end(name):
    plain, zero = (
        DiffusionConfig(schedule=name),
        DiffusionConfig(schedule=name, zero_terminal_snr=1),
    )
    logsnr = schedule(zero)(torch.tensor([0.0, 1.0]))
    alpha, sigma = alpha_sigma(logsnr)
    assert (logsnr[1].item(), alpha[1].item(), sigma[1].item()) == (-math.inf, 0.0, 1.0)
    assert logsnr[0].item() == pytest.approx(schedule(plain)(torch.tensor(0.0)).item(), abs=1e-8)


def test_zero_terminal_snr_is_linear_in_alpha():
    plain = alpha_sigma(schedule(DiffusionConfig(schedule="linear"))(TIMES))[0]
    zero = DiffusionConfig(schedule="linear", zero_terminal_snr=True)
    expected = (plain - plain[-1]) * plain[0] / (plain[0] - plain[-1])
    torch.testing.assert_close(alpha_sigma(schedule(zero)(TIMES))[0], expected, atol=1e-12, rtol=0)


def test_shift_adds_to_logsnr_and_comes_from_the_size():
    assert resolution_shift(64) == 0
    assert resolution_shift(256) == pytest.approx(2 * math.log(1 / 4))
    assert resolution_shift(128, reference_px=32) == resolution_shift(256)
    # a mean over 4 x 4 pixels of a 256 px image has the SNR that the 64 px image has
    config = DiffusionConfig(logsnr_shift=resolution_shift(256))
    snr_of_means = torch.exp(schedule(config)(TIMES)) * 16
    torch.testing.assert_close(snr_of_means, torch.exp(schedule(DiffusionConfig())(TIMES)))


def test_schedule_is_variance_preserving():
    alpha, sigma = alpha_sigma(torch.linspace(-20, 20, 101, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101).double(), atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_uniform_training_times_are_those_of_the_schedule(name):
    config = DiffusionConfig(schedule=name, logsnr_shift=-1.0)
    assert torch.equal(train_logsnr(config, TIMES), schedule(config)(TIMES))


def test_lognormal_training_times_are_edms_distribution_of_sigma():
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000  # as stratified draws are
    log_sigma = -train_logsnr(DiffusionConfig(schedule="edm", times="lognormal"), t) / 2
    # quantiles of N(-1.2, 1.2^2); 0.6745 and 1.2816 are those of N(0, 1) at 3/4 and 9/10
    for share, quantile in ((0.5, 0.0), (0.75, 0.67449), (0.25, -0.67449), (0.9, 1.28155)):
        at = torch.quantile(log_sigma, share).item()
        assert at == pytest.approx(-1.2 + 1.2 * quantile, abs=1e-3)
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-6)
    assert log_sigma.std().item() == pytest.approx(1.2, rel=1e-3)
    assert (log_sigma.diff() > 0).all(), "t = 0 stays the clean end"


def test_lognormal_training_times_move_with_the_shift():
    t = torch.tensor([0.3], dtype=torch.float64)
    edm = {"schedule": "edm", "times": "lognormal"}
    plain = train_logsnr(DiffusionConfig(**edm), t)
    shifted = train_logsnr(DiffusionConfig(**edm, logsnr_shift=-2.0), t)
    torch.testing.assert_close(shifted, plain - 2)


@pytest.mark.parametrize("name", NAMES)
def test_lognormal_training_is_allowed_where_it_reaches_the_level_that_sampling_starts_at(name):
    """EDM's own schedule starts 4.65 deviations from the mean of log(sigma / alpha)."""
    start = schedule(DiffusionConfig(schedule=name))(torch.ones(1, dtype=torch.float64)).item()
    deviations = (-start / 2 + 1.2) / 1.2
    assert (deviations < 5.5) == (name in LOGNORMAL_SCHEDULES)
    assert (deviations > 7) == (name not in LOGNORMAL_SCHEDULES)


def test_zero_terminal_snr_is_refused_where_it_cannot_be_learnt():
    with pytest.raises(
        ConfigError, match=r"zero_terminal_snr with prediction 'eps'[\s\S]*predict v"
    ):
        DiffusionConfig(prediction="eps", zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="zero_terminal_snr with times 'lognormal'"):
        DiffusionConfig(times="lognormal", zero_terminal_snr=True)
