"""Losses and weights, against formulas written out for each prediction."""

import math

import pytest
import torch
from torch.nn import functional

from imagen.diffusion.config import LOGNORMAL_SCHEDULES, DiffusionConfig
from imagen.diffusion.density import speed
from imagen.diffusion.losses import elementwise, weight
from imagen.diffusion.prediction import diffuse, target, to_x0
from imagen.diffusion.schedule import alpha_sigma, train_logsnr

KINDS = ("v", "eps", "x0", "edm", "flow")
LOGSNR = torch.linspace(-15, 15, 61, dtype=torch.float64)
SNR = torch.exp(LOGSNR)
ALPHA, SIGMA = alpha_sigma(LOGSNR)
NOISE = SIGMA / ALPHA


def weights(prediction, weighting, **options):
    return weight(DiffusionConfig(prediction=prediction, weighting=weighting, **options), LOGSNR)


@pytest.mark.parametrize("kind", ["l2", "l1", "huber"])
def test_losses_of_elements_are_torchs(kind):
    error = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0])
    reference = {
        "l2": functional.mse_loss,
        "l1": functional.l1_loss,
        "huber": functional.huber_loss,
    }
    expected = reference[kind](error, torch.zeros(5), reduction="none")
    assert torch.equal(elementwise(kind, error), expected)


def test_losses_by_hand():
    error = torch.tensor([-2.0, 0.5])
    assert elementwise("l2", error).tolist() == [4.0, 0.25]
    assert elementwise("l1", error).tolist() == [2.0, 0.5]
    assert elementwise("huber", error).tolist() == [1.5, 0.125]


@pytest.mark.parametrize("prediction", KINDS)
def test_no_weighting_is_exactly_one(prediction):
    assert torch.equal(weights(prediction, "none"), torch.ones(61, dtype=torch.float64))


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("x0", SNR.clamp(max=5)),
        ("eps", SNR.clamp(max=5) / SNR),
        ("v", SNR.clamp(max=5) / (SNR + 1)),
        ("edm", SNR.clamp(max=5) * NOISE**2 * 0.25 / (NOISE**2 + 0.25)),
        ("flow", SNR.clamp(max=5) / (SNR.sqrt() + 1) ** 2),
    ],
)
def test_min_snr_is_hangs_with_gamma_5(prediction, expected):
    torch.testing.assert_close(weights(prediction, "min_snr"), expected)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("x0", (NOISE**2 + 0.25) / (NOISE * 0.5) ** 2),
        ("edm", torch.ones_like(NOISE)),  # Table 1: lambda = 1 / c_out^2
        ("eps", 1 + 4 * NOISE**2),
        ("v", (NOISE**2 + 0.25) / (NOISE * 0.5) ** 2 * SIGMA**2),
        ("flow", (NOISE**2 + 0.25) / 0.25 / (1 + NOISE) ** 2),
    ],
)
def test_edm_weighting_is_lambda_of_table_1(prediction, expected):
    torch.testing.assert_close(weights(prediction, "edm"), expected)


def test_v_weighting_makes_the_loss_of_x0_that_of_v_but_for_the_cut():
    generator = torch.Generator().manual_seed(0)
    x0, eps, out = torch.randn(3, 61, 1, 2, 2, generator=generator, dtype=torch.float64)
    level = [z[:, None, None, None] for z in (ALPHA, SIGMA)]
    xt = diffuse(x0, eps, *level)
    v = (level[0] * xt - out) / level[1]  # what the x0 in `out` says of v
    v_loss = (v - target("v", x0, eps, *level)).square().mean(dim=(1, 2, 3))
    ours = weights("x0", "v") * (out - x0).square().mean(dim=(1, 2, 3))
    free = SIGMA >= 0.05
    torch.testing.assert_close(ours[free], v_loss[free])
    assert (weights("x0", "v")[~free] == 1 / 0.05**2).all()
    torch.testing.assert_close(weights("v", "v")[free], torch.ones_like(SIGMA[free]))
    assert weights("x0", "v").max() <= 400.001, "without the cut it would be 3e6"


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "sigmoid", "v"])
def test_every_prediction_has_the_same_weighted_objective(prediction, weighting):
    generator = torch.Generator().manual_seed(1)
    x0, eps, error = torch.randn(3, 61, 1, 2, 2, generator=generator, dtype=torch.float64)
    level = [z[:, None, None, None] for z in (ALPHA, SIGMA)]
    xt = diffuse(x0, eps, *level)
    out = target(prediction, x0, eps, *level) + error
    of_x0 = (to_x0(prediction, out, xt, *level) - x0).square().mean(dim=(1, 2, 3))
    ours = weights(prediction, weighting) * error.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours, weights("x0", weighting) * of_x0, atol=0, rtol=1e-4)


def test_sigmoid_weighting_is_a_sigmoid_of_the_eps_error_over_logsnr():
    """Kingma & Gao's integral 1/2 w(logsnr) |eps error|^2 d logsnr, whatever draws the levels."""
    inside = torch.linspace(-8, 8, 33, dtype=torch.float64)
    for options in (
        {},
        {"schedule": "edm"},
        {"schedule": "linear"},
        {"times": "lognormal", "schedule": "edm"},
        {"schedule": "rectified", "prediction": "x0"},
        {"prediction": "flow", "zero_terminal_snr": True},
    ):
        config = DiffusionConfig(weighting="sigmoid", **options)
        # what a unit error of eps weighs: an error of eps is b_eps / b that of the output
        alpha, sigma = alpha_sigma(inside)
        one, none = torch.ones_like(alpha), torch.zeros_like(alpha)
        shift = to_x0(config.prediction, one, none, alpha, sigma)  # b
        of_eps = weight(config, inside) * (sigma / alpha / shift) ** 2
        expected = 0.5 * torch.sigmoid(2 - inside) * speed(config, inside)
        torch.testing.assert_close(of_eps, expected)


def test_the_sigmoids_bias_moves_with_the_shift():
    plain, shifted = weights("eps", "sigmoid"), weights("eps", "sigmoid", logsnr_shift=-3.0)
    torch.testing.assert_close(shifted[:-6], plain[6:])  # 6 of the grid's steps are 3


@pytest.mark.parametrize("name", ["cosine", "linear", "edm", "rectified"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shift", [0.0, -2.8])
def test_speed_is_the_derivative_of_the_schedule(name, zero, shift):
    config = DiffusionConfig(schedule=name, zero_terminal_snr=zero, logsnr_shift=shift)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64).requires_grad_()
    logsnr = train_logsnr(config, t)
    slope = torch.autograd.grad(logsnr.sum(), t)[0]
    torch.testing.assert_close(speed(config, logsnr), -slope, atol=0, rtol=1e-6)


def test_speed_is_the_derivative_of_lognormal_times():
    config = DiffusionConfig(times="lognormal", schedule="linear", logsnr_shift=1.0)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64).requires_grad_()
    logsnr = train_logsnr(config, t)
    slope = torch.autograd.grad(logsnr.sum(), t)[0]
    torch.testing.assert_close(speed(config, logsnr), -slope)


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("weighting", ["none", "min_snr", "edm", "sigmoid", "v"])
@pytest.mark.parametrize("name", ["cosine", "linear", "edm", "rectified"])
def test_weights_are_finite_at_every_level_that_training_draws(prediction, weighting, name):
    ends = torch.tensor([0, 1e-9, 0.5, 1 - 1e-9, 1], dtype=torch.float64)
    zero = [False] if prediction == "eps" else [False, True]
    for flag in zero:
        config = DiffusionConfig(
            prediction=prediction, weighting=weighting, schedule=name, zero_terminal_snr=flag
        )
        values = weight(config, train_logsnr(config, ends))
        assert values.dtype == torch.float64
        assert torch.isfinite(values).all()
        assert (values >= 0).all()
    if name in LOGNORMAL_SCHEDULES:
        config = DiffusionConfig(
            prediction=prediction, weighting=weighting, schedule=name, times="lognormal"
        )
        assert torch.isfinite(weight(config, train_logsnr(config, ends[1:4]))).all()


def test_weights_at_the_middle_by_hand():
    middle = torch.zeros(1, dtype=torch.float64)
    expected = {"min_snr": 0.5, "edm": 2.5, "v": 1.0}
    for weighting, value in expected.items():
        assert weight(DiffusionConfig(weighting=weighting), middle).item() == pytest.approx(value)
    config = DiffusionConfig(weighting="sigmoid")
    by_hand = 0.5 * 2 * math.pi / (1 + math.exp(-2)) * 0.5  # speed 2 pi, v error half of eps error
    assert weight(config, middle).item() == pytest.approx(by_hand, rel=1e-3)
