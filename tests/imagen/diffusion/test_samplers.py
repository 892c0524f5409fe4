"""What every sampler keeps to, whatever it is given."""

import inspect
import math

import pytest
import torch

from imagen.diffusion.config import DiffusionConfig, SamplingConfig
from imagen.diffusion.samplers import (
    HEUN_LEAST,
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    heun,
    run,
)
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path
from imagen.errors import ConfigError

LEVELS = path(schedule(DiffusionConfig(schedule="edm")), 5)
ZERO = path(schedule(DiffusionConfig(zero_terminal_snr=True)), 5)
STOCHASTIC = {"ddpm": 0.5, "ddim": 0.7, "dpmpp_2m_sde": 1.0, "heun": 10.0, "euler": 10.0}


@pytest.fixture
def x(normals):
    return normals(1, (3, 1, 1, 2))(0)


def options(name, noise):
    knob = SAMPLERS[name].knob
    return {} if knob is None else {"noise": noise, knob: STOCHASTIC[name]}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_short_and_of_one_signature(name):
    function = SAMPLERS[name].function
    assert len(inspect.getsource(function).splitlines()) <= 40
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:3] == ["denoise", "x", "logsnrs"]
    assert parameters["on_step"].kind is inspect.Parameter.KEYWORD_ONLY
    knob = SAMPLERS[name].knob
    assert knob is None or parameters[knob].default == SAMPLERS[name].default


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_asks_at_its_level_and_is_told(name, gaussian, normals, x):
    asked, told = [], []

    def denoise(xt, logsnr):
        asked.append(logsnr)
        return gaussian.denoise(xt, logsnr)

    noise = normals(2, x.shape)
    config = SamplingConfig(sampler=name)
    run(config, denoise, x, LEVELS, noise, told.append)
    again = [level for level in LEVELS[1:-1] for _ in range(2)] if name == "heun" else LEVELS[1:-1]
    assert asked == [LEVELS[0], *again][: len(asked)]
    assert len(asked) == (9 if name == "heun" else 5)
    assert told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_returns_what_the_denoiser_says(name, gaussian, normals, x):
    ends = [LEVELS[0], LEVELS[-1]]
    out = run(SamplingConfig(sampler=name), gaussian.denoise, x, ends, normals(2, x.shape))
    torch.testing.assert_close(out, gaussian.denoise(x, LEVELS[0]))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["time", "logsnr", "karras"])
@pytest.mark.parametrize("knob", ["default", "stochastic"])
def test_every_sampler_works_from_zero_snr(name, spacing, knob, gaussian, normals):
    noise = normals(3, (500, 1, 1, 2))
    levels = path(schedule(DiffusionConfig(zero_terminal_snr=True)), 64, spacing)
    kwargs = options(name, noise) if knob == "stochastic" else {}
    if name == "ddpm":
        kwargs.setdefault("noise", noise)
    if name == "dpmpp_2m_sde" and knob == "default":
        kwargs = {"eta": 0.0}
    out = SAMPLERS[name].function(gaussian.denoise, noise(99), levels, **kwargs)
    assert levels[0] == -math.inf
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.mean(0).flatten(), gaussian.mean, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("levels", [LEVELS, ZERO])
def test_single_precision_is_kept_and_close_to_double(name, levels, gaussian, normals, x):
    noise = normals(4, x.shape)
    kwargs = options(name, noise)
    exact = SAMPLERS[name].function(gaussian.denoise, x, levels, **kwargs)
    if kwargs:
        kwargs["noise"] = lambda i: noise(i).float()

    def denoise(xt, logsnr):
        return gaussian.denoise(xt.double(), logsnr).float()

    out = SAMPLERS[name].function(denoise, x.float(), levels, **kwargs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_an_image_does_not_depend_on_its_neighbours(name, gaussian, normals, x):
    noise = normals(5, x.shape)
    together = SAMPLERS[name].function(gaussian.denoise, x, LEVELS, **options(name, noise))
    kwargs = options(name, lambda i: noise(i)[1:2])
    alone = SAMPLERS[name].function(gaussian.denoise, x[1:2], LEVELS, **kwargs)
    torch.testing.assert_close(alone, together[1:2])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_differ_with_the_noise_and_repeat_with_it(name, gaussian, normals, x):
    outs = [
        SAMPLERS[name].function(gaussian.denoise, x, LEVELS, **options(name, normals(s, x.shape)))
        for s in (6, 6, 7)
    ]
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2], atol=1e-3)


@pytest.mark.parametrize("levels", [LEVELS, ZERO])
def test_samplers_meet_where_they_are_the_same(levels, gaussian, normals, x):
    noise = normals(8, x.shape)
    exact = {"atol": 1e-10, "rtol": 0}
    same = (
        (euler(gaussian.denoise, x, levels), ddim(gaussian.denoise, x, levels)),
        (dpmpp_2m_sde(gaussian.denoise, x, levels, eta=0.0), dpmpp_2m(gaussian.denoise, x, levels)),
        (
            ddim(gaussian.denoise, x, levels, eta=1.0, noise=noise),
            ddpm(gaussian.denoise, x, levels, gamma=0.0, noise=noise),
        ),
    )
    for one, other in same:
        torch.testing.assert_close(one, other, **exact)


def test_gamma_interpolates_the_logarithm_of_the_variance(x):
    """One step from logsnr 0 to 2, with the variance of the fresh noise read off."""
    levels = [0.0, 2.0, 3.0]
    seen = {}
    for gamma in (0.0, 0.3, 1.0):
        states = []
        for unit in (0.0, 1.0):

            def denoise(xt, logsnr, states=states):
                states.append(xt)
                return torch.zeros_like(xt)

            ddpm(denoise, x, levels, gamma=gamma, noise=lambda _, u=unit: torch.full_like(x, u))
        seen[gamma] = (states[3] - states[1]).mean().item() ** 2
    fresh = 1 - math.exp(0.0 - 2.0)
    lower, upper = fresh / (1 + math.exp(2.0)), fresh / 2
    assert seen[0.0] == pytest.approx(lower)
    assert seen[1.0] == pytest.approx(upper)
    assert seen[0.3] == pytest.approx(lower**0.7 * upper**0.3)


def test_churn_is_algorithm_2_in_edms_coordinates(x):
    """Levels asked, and the state there, written out as x_hat = x + sqrt(s_hat^2 - s^2) eps."""
    sigmas, churn = [100.0, 10.0, 1.0, 0.04], 0.3
    levels = [-2 * math.log(s) for s in (*sigmas, 0.01)]
    asked = []

    def denoise(xt, logsnr):
        asked.append((logsnr, xt))
        return torch.zeros_like(xt)

    euler(denoise, x, levels, s_churn=churn, noise=lambda i: torch.full_like(x, i))
    scaled, grow = x * math.sqrt(1 + sigmas[0] ** 2), 1 + churn / 4
    for i, sigma in enumerate(sigmas):
        raised = sigma * grow if 0.05 <= sigma <= 50 else sigma
        scaled = scaled + math.sqrt(raised**2 - sigma**2) * 1.003 * i
        logsnr, xt = asked[i]
        assert logsnr == pytest.approx(-2 * math.log(raised))
        torch.testing.assert_close(xt * math.sqrt(1 + raised**2), scaled)
        scaled = scaled * (sigmas[i + 1] if i < 3 else 0.0) / raised  # the image is 0


def test_churn_is_at_most_root_two(x):
    asked = []
    euler(
        lambda xt, logsnr: asked.append(logsnr) or xt, x, [0.0, 1.0], s_churn=99.0,
        noise=lambda _: x,
    )  # fmt: skip
    assert asked == pytest.approx([-math.log(2)])


def test_heun_takes_plain_steps_from_beyond_edms_levels(gaussian, x):
    calls = []
    levels = [HEUN_LEAST - 1, HEUN_LEAST + 0.1, 0.0, 5.0]
    heun(lambda xt, level: calls.append(level) or gaussian.denoise(xt, level), x, levels)
    assert calls == [levels[0], levels[1], levels[2], levels[2]]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_without_noise_is_refused(name, gaussian, x):
    with pytest.raises(
        ConfigError, match=rf"sampler {name} with \w+ .* was given no noise\n\nhint"
    ):
        SAMPLERS[name].function(gaussian.denoise, x, LEVELS, **{SAMPLERS[name].knob: 0.5})


def test_ddpm_without_noise_is_refused_whatever_its_gamma(gaussian, x):
    with pytest.raises(ConfigError, match=r"sampler ddpm with gamma 0.0 is stochastic"):
        run(SamplingConfig(sampler="ddpm"), gaussian.denoise, x, LEVELS)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_knob_out_of_range_is_refused(name, value, gaussian, x):
    knob = SAMPLERS[name].knob
    with pytest.raises(ConfigError, match=rf"{knob} {value} of sampler {name} is not in \[0, "):
        SAMPLERS[name].function(gaussian.denoise, x, LEVELS, noise=lambda _: x, **{knob: value})


@pytest.mark.parametrize("levels", [[0.0], [], [0.0, 0.0], [1.0, 0.0], [0.0, math.nan]])
def test_levels_that_do_not_rise_are_refused(levels, gaussian, x):
    with pytest.raises(ConfigError, match=r"log-SNRs \[.*\] are not two or more that rise"):
        dpmpp_2m(gaussian.denoise, x, levels)


def test_run_gives_the_configs_stochasticity(gaussian, normals, x):
    noise = normals(9, x.shape)
    for name, value in STOCHASTIC.items():
        config = SamplingConfig(sampler=name, stochasticity=value)
        ours = run(config, gaussian.denoise, x, LEVELS, noise)
        expected = SAMPLERS[name].function(gaussian.denoise, x, LEVELS, **options(name, noise))
        assert torch.equal(ours, expected)
