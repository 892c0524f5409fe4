import math

import pytest

from imagen.config import build, to_tree
from imagen.diffusion.config import DiffusionConfig, SamplingConfig
from imagen.errors import ConfigError


@pytest.mark.parametrize("name", ["prediction", "schedule", "loss", "weighting", "times"])
def test_unknown_names_of_training_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} 'magic' is none of "):
        DiffusionConfig(**{name: "magic"})


@pytest.mark.parametrize("name", ["sampler", "spacing", "guidance", "threshold"])
def test_unknown_names_of_sampling_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} 'magic' is none of "):
        SamplingConfig(**{name: "magic"})


@pytest.mark.parametrize("shift", [11.0, -11.0, math.nan])
def test_shift_out_of_range_is_refused(shift):
    with pytest.raises(ConfigError, match=r"logsnr_shift .* is not in \[-10, 10\]"):
        DiffusionConfig(logsnr_shift=shift)


@pytest.mark.parametrize("weighting", ["min_snr", "edm", "sigmoid", "v"])
@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_weights_of_squared_errors_are_refused_with_other_losses(loss, weighting):
    message = rf"weighting '{weighting}' with loss '{loss}': .* squared [\s\S]*hint: take loss l2"
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(loss=loss, weighting=weighting)
    DiffusionConfig(loss=loss)
    DiffusionConfig(weighting=weighting)


@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_lognormal_times_are_refused_where_sampling_starts_at_levels_never_trained(name):
    message = rf"times 'lognormal' with schedule '{name}': [\s\S]*hint: take schedule edm or linear"
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(schedule=name, times="lognormal")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps 0 is less than 1"),
        ({"guidance_scale": math.inf}, "guidance_scale inf is not a finite number"),
        ({"guidance_interval": (0.5, 0.5)}, r"guidance_interval \[0.5, 0.5\] is no interval"),
        ({"guidance_interval": (-0.1, 0.5)}, r"guidance_interval \[-0.1, 0.5\] is no interval"),
        ({"threshold_percentile": 0.0}, r"threshold_percentile 0.0 is not in \(0, 1\]"),
        ({"threshold_cap": 0.5}, "threshold_cap 0.5 is not a finite number >= 1"),
        ({"threshold": "static", "threshold_cap": 2.0}, "threshold_cap 2.0 has no effect"),
        ({"aug_level": 1.5}, r"aug_level 1.5 is not in \[0, 1\]"),
        ({"stochasticity": 0.5}, "has no effect: dpmpp_2m adds no noise"),
        ({"sampler": "ddim", "stochasticity": 1.5}, r"\(eta of ddim\) 1.5 is not in \[0, 1\]"),
        ({"sampler": "ddpm", "stochasticity": -0.1}, r"\(gamma of ddpm\) -0.1 is not in \[0, 1\]"),
        (
            {"sampler": "heun", "stochasticity": -1.0},
            r"\(s_churn of heun\) -1.0 is not in \[0, inf",
        ),
        ({"sampler": "euler", "stochasticity": math.inf}, r"\(s_churn of euler\) inf is not in"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_its_value(values, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**values)


@pytest.mark.parametrize(
    "config",
    [
        DiffusionConfig(prediction="x0", weighting="v", logsnr_shift=-1.5),
        SamplingConfig(sampler="heun", stochasticity=20.0, guidance_interval=(0.2, 0.8)),
        SamplingConfig(threshold_cap=2.0, guidance="apg", spacing="karras"),
    ],
)
def test_configs_survive_a_trip_through_plain_values(config):
    assert build(type(config), to_tree(config)) == config
