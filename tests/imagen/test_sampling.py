import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch

from imagen.data.randomness import Purpose, normals
from imagen.diffusion.samplers import run
from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr, schedule
from imagen.diffusion.spacing import path
from imagen.errors import ConfigError
from imagen.member import DiffusionConfig, Given, SamplingConfig, loss
from imagen.sampling import SampleOptions, draw, noise, noised_lowres

MEAN, STD = 0.1, 0.2


def ignore(step):
    pass


def drawn(net, config, seeds, index=0, given=None):
    with torch.inference_mode():
        return draw(net, config, index, given or Given(), seeds, ignore)


def best_of_gaussian(x, alpha, sigma, _):
    """The optimal estimate for images of independent pixels N(MEAN, STD^2)."""
    gain = STD**2 * alpha / (alpha.square() * STD**2 + sigma.square())
    return MEAN + gain * (x - alpha * MEAN)


def test_each_image_has_noise_of_its_own_seed_and_draw():
    both = noise([3, 9], Purpose.SAMPLE_STEP + 1, (2, 4, 4), 7)
    assert both.shape == (2, 2, 4, 4)
    assert torch.equal(both[1:], noise([9], Purpose.SAMPLE_STEP + 1, (2, 4, 4), 7))
    expected = normals(9, Purpose.SAMPLE_STEP + 1, [7], 32)
    assert torch.equal(both[1].flatten(), torch.from_numpy(expected[0]))
    others = [noise([3], Purpose.SAMPLE_STEP + i, (2, 4, 4), d) for i, d in ((1, 8), (2, 7))]
    assert all((other - both[:1]).abs().max() > 0.1 for other in others)


def test_draw_zero_is_the_noise_that_earlier_versions_started_from():
    expected = normals(5, Purpose.SAMPLE, [0], 16)
    assert torch.equal(
        noise([5], Purpose.SAMPLE, (1, 4, 4)).flatten(), torch.from_numpy(expected[0])
    )


def exact_gaussian(xt, logsnr):
    alpha, sigma = alpha_sigma(torch.tensor(logsnr, dtype=torch.float64))
    return best_of_gaussian(xt.double(), alpha, sigma, None).float()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "euler"])
@pytest.mark.parametrize("kind", ["v", "eps", "x0", "edm", "flow"])
def test_a_member_with_an_optimal_network_draws_what_the_sampler_draws_without_one(
    toy, sampler, kind
):
    """End to end: noise, schedule, denoiser and sampler of a member fit each other."""
    config = dataclasses.replace(
        toy.BARE,
        diffusion=DiffusionConfig(prediction=kind),
        sampling=SamplingConfig(sampler=sampler, steps=12, spacing="logsnr", threshold="none"),
    )
    images = drawn(toy.Oracle(kind, best_of_gaussian), config, [1, 2])
    x = noise([1, 2], Purpose.SAMPLE, (1, 8, 8))
    logsnrs = path(schedule(config.diffusion), 12, "logsnr")
    fresh = partial(noise, [1, 2], Purpose.SAMPLE_STEP, (1, 8, 8))
    exact = run(config.sampling, exact_gaussian, x, logsnrs, fresh)
    torch.testing.assert_close(images, exact, atol=2e-3, rtol=0)
    assert abs(images.mean() - MEAN) < 0.05
    assert abs(images.std() / STD - 1) < 0.4


@pytest.mark.parametrize("level", [0.0, 0.2, 0.6])
def test_the_lowres_image_has_the_same_statistics_in_training_and_sampling(toy, level):
    """One that noises in [-1, 1] in training and in [0, 1] in sampling gives mid-grey -0.25."""
    batch = toy.train_batch(toy.SR, b=256)
    grey = torch.linspace(-0.5, 0.5, 8 * 8).reshape(1, 1, 8, 8).expand(256, -1, -1, -1)
    levels = torch.full((256,), level, dtype=torch.float64)
    batch = dataclasses.replace(batch, lowres=grey, aug_level=levels)
    net = toy.Oracle("v", lambda x, *_: x)
    loss(net, toy.SR, batch)
    trained = net.calls[0][1]
    config = dataclasses.replace(toy.SR, sampling=SamplingConfig(aug_level=level))
    seen, aug = noised_lowres(config, 1, grey, range(256))
    torch.testing.assert_close(trained.aug, aug)
    assert abs(trained.lowres.mean() - seen.mean()) < 0.025
    assert abs(trained.lowres.std() / seen.std() - 1) < 0.02


def test_the_lowres_image_is_clean_at_augmentation_level_0_and_noise_at_1(toy):
    lowres = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    found = {}
    for level in (0.0, 0.3, 1.0):
        config = dataclasses.replace(toy.SR, sampling=SamplingConfig(aug_level=level))
        found[level] = noised_lowres(config, 1, lowres, [3])
    clean, noisy = (
        torch.nn.functional.interpolate(z, (16, 16), mode="bilinear", align_corners=False)
        for z in (lowres, noise([3], Purpose.SAMPLE_AUG + 1, (1, 8, 8)))
    )
    torch.testing.assert_close(found[0.0][0], clean, atol=4e-3, rtol=0)  # sigma there is 5.5e-4
    torch.testing.assert_close(found[1.0][0], noisy, atol=4e-3, rtol=0)
    assert (found[0.3][0] - clean).abs().max() > 0.1
    told = torch.cat([toy.logsnr_of(aug) for _, aug in found.values()])
    wanted = cosine_logsnr(torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(told, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde", "dpmpp_2m"])
@pytest.mark.parametrize("name", ["BASE", "SR"])
def test_same_seed_same_image_alone_or_in_a_batch_of_sixteen(toy, sampler, name):
    """To 1e-5: convolutions and matrix products of other batch sizes may add in another order."""
    config = dataclasses.replace(
        getattr(toy, name), sampling=SamplingConfig(sampler=sampler, steps=4)
    )
    net, words = toy.awake(config), toy.text(16)

    def given(rows):
        seeds = list(range(100, 116))[rows]
        lowres = torch.linspace(-1, 1, 16 * 64).reshape(16, 1, 8, 8)[rows]
        seen = noised_lowres(config, 1, lowres, seeds) if name == "SR" else (None, None)
        part = type(words)(words.emb[rows], words.mask[rows])
        return drawn(net, config, seeds, 1, Given(part, None, *seen))

    together = given(slice(0, 16))
    for i in (0, 7, 15):
        torch.testing.assert_close(given(slice(i, i + 1))[0], together[i], atol=1e-5, rtol=0)
    assert (together[1:] - together[:-1]).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def test_guidance_and_self_conditioning_remember_each_image_by_itself(toy):
    """Everything on at once: label, image, negative prompt, projected guidance, own estimates."""
    sampling = SamplingConfig(
        sampler="dpmpp_2m_sde", steps=4, guidance="apg", guidance_interval=(0.2, 1.0)
    )
    config = dataclasses.replace(toy.ALL, sampling=sampling)
    net, batch = toy.awake(config), toy.train_batch(config)

    def images(rows):
        words, unwanted = (
            type(t)(t.emb[rows], t.mask[rows]) for t in (batch.text, toy.text(4, seed=5, tokens=6))
        )
        seeds = [11, 12, 13, 14][rows]
        seen = noised_lowres(config, 1, batch.lowres[rows], seeds)
        given = Given(words, unwanted, *seen, batch.label[rows], batch.image[rows])
        return drawn(net, config, seeds, 1, given)

    together = images(slice(0, 4))
    assert together.isfinite().all()
    for i in (0, 3):
        torch.testing.assert_close(images(slice(i, i + 1))[0], together[i], atol=1e-5, rtol=0)


def test_stochastic_samplers_draw_fresh_noise_in_each_step_and_member(toy):
    config = dataclasses.replace(
        toy.BARE, sampling=SamplingConfig(sampler="ddpm", steps=3, threshold="none")
    )
    net = toy.Oracle("v", lambda x, *_: torch.zeros_like(x))
    drawn(net, config, [4])
    xs = [x for x, _ in net.calls]
    drawn(net, config, [4], index=1)
    again = [x for x, _ in net.calls[3:]]
    cosine = torch.nn.functional.cosine_similarity
    for one, other in [(xs[0], xs[1]), (xs[1], xs[2]), (xs[0], again[0]), (xs[1], again[1])]:
        assert cosine(one.flatten(), other.flatten(), dim=0).abs() < 0.9


def test_steps_and_spacing_decide_the_levels_that_the_network_is_told(toy):
    config = dataclasses.replace(
        toy.BARE, sampling=SamplingConfig(sampler="ddim", steps=5, spacing="logsnr")
    )
    net = toy.Oracle("v", lambda x, *_: torch.zeros_like(x))
    drawn(net, config, [1])
    told = torch.cat([toy.logsnr_of(conditions.time) for _, conditions in net.calls])
    assert torch.allclose(told, torch.linspace(-15, 15, 6).double()[:5], atol=2e-3)
    assert schedule(config.diffusion)(torch.tensor(1.0)) == pytest.approx(-15)


def test_options_for_a_member_win_over_options_for_all_which_win_over_defaults():
    defaults = SamplingConfig(steps=9, guidance_scale=2.0, aug_level=0.3)
    options = SampleOptions(
        guidance_scale=4.0, steps=5, members={"sr1": {"steps": 3, "threshold": "static"}}
    )
    base, sr1 = (options.resolve(name, defaults) for name in ("base", "sr1"))
    assert (base.steps, base.guidance_scale, base.threshold, base.aug_level) == (
        5,
        4.0,
        "dynamic",
        0.3,
    )
    assert (sr1.steps, sr1.guidance_scale, sr1.threshold, sr1.aug_level) == (3, 4.0, "static", 0.3)
    assert SampleOptions().resolve("base", defaults) == defaults
    assert SampleOptions(aug_level=0.0).resolve("sr1", defaults).aug_level == 0.0


def test_any_key_is_set_for_all_members_and_a_member_has_the_last_word():
    options = SampleOptions(
        sampling={"spacing": "karras", "guidance_interval": [0.2, 0.9], "steps": 7},
        members={"sr1": {"spacing": "logsnr"}},
    )
    base, sr1 = (options.resolve(name, SamplingConfig()) for name in ("base", "sr1"))
    assert (base.spacing, base.guidance_interval, base.steps) == ("karras", (0.2, 0.9), 7)
    assert (sr1.spacing, sr1.guidance_interval, sr1.steps) == ("logsnr", (0.2, 0.9), 7)


@pytest.mark.parametrize(
    ("key", "named", "other"),
    [("guidance_scale", 2, 3), ("steps", 2, 2), ("sampler", "ddim", "heun"), ("aug_level", 0, 1)],
)
def test_one_key_is_not_set_twice_for_all_members(key, named, other):
    message = rf"`{key}` is set twice for all members: {key} {named!r} and sampling {key} {other!r}"
    with pytest.raises(ConfigError, match=message + "\n\nhint: leave one"):
        SampleOptions(**{key: named, "sampling": {key: other}})


@pytest.mark.parametrize("nothing", ["", "  \n"])
def test_an_empty_negative_prompt_is_none(nothing):
    assert SampleOptions(negative=nothing) == SampleOptions()


def test_numbers_of_numpy_are_numbers():
    options = SampleOptions(steps=np.int64(3), guidance_scale=np.float32(2.0))
    assert options.resolve("base", SamplingConfig()).steps == 3


def test_the_stochasticity_of_one_sampler_is_not_passed_on_to_another():
    defaults = SamplingConfig(sampler="ddim", stochasticity=0.5)
    assert SampleOptions(sampler="dpmpp_2m").resolve("base", defaults).stochasticity is None
    assert SampleOptions(sampler="ddim").resolve("base", defaults).stochasticity == 0.5
    chosen = SampleOptions(sampler="heun", members={"base": {"stochasticity": 4.0}})
    assert chosen.resolve("base", defaults).stochasticity == 4.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sampler": "plms"}, "sampler 'plms' is unknown\n\nhint: samplers: ddpm, ddim, dpm"),
        ({"guidance_scale": math.nan}, "guidance_scale nan is not a finite number"),
        ({"steps": 0}, "steps 0 is less than 1"),
        ({"aug_level": 1.5}, r"aug_level 1.5 is not in \[0, 1\]"),
        (
            {"members": {"sr1": {"stps": 3}}},
            "options.members.sr1 has an unknown key `stps`\n\nhint: did you mean `steps`",
        ),
        ({"members": {"sr1": {"zzz": 3}}}, "unknown key `zzz`\n\nhint: keys: sampler, steps"),
        (
            {"sampling": {"spacig": "time"}},
            "sampling has an unknown key `spacig`\n\nhint: did you mean `spacing`",
        ),
        ({"precision": "fp16"}, "precision 'fp16' is none of fp32, bf16"),
        ({"steps": "4"}, r"options.steps is '4' \(str\), not a whole number"),
        ({"steps": 4.0}, r"options.steps is 4.0 \(float\), not a whole number"),
        ({"steps": True}, r"options.steps is True \(bool\)"),
        ({"guidance_scale": "3"}, r"options.guidance_scale is '3' \(str\), not a number"),
        ({"aug_level": [0.1]}, r"options.aug_level is .* \(list\), not a number"),
        ({"sampler": 3}, r"options.sampler is 3 \(int\), not the name of a sampler"),
        ({"negative": ["blur"]}, r"options.negative is \['blur'\] \(list\), not one text for all"),
        ({"last": 1}, r"options.last is 1 \(int\), not a member's name"),
        ({"sampling": "steps=3"}, r"options.sampling is 'steps=3' \(str\), not a mapping of keys"),
        ({"members": ["sr1"]}, r"options.members is \['sr1'\] \(list\), not a mapping of members"),
        ({"members": {"sr1": 3}}, r"options.members.sr1 is 3 \(int\), not a mapping of keys"),
    ],
)
def test_options_out_of_range_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        SampleOptions(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"threshold": "dinamic"}, "sampling of sr1: .*threshold"),
        ({"steps": "many"}, "sampling of sr1: `steps`: .*got 'many'"),
        ({"guidance_interval": [0.9, 0.1]}, r"guidance_interval \[0.9, 0.1\] is no interval"),
        ({"sampler": "dpmpp_2m", "stochasticity": 1.0}, "stochasticity 1.0 has no effect"),
    ],
)
def test_values_for_a_member_are_checked_as_in_its_config(keys, message):
    options = SampleOptions(members={"sr1": keys})
    with pytest.raises(ConfigError, match=message):
        options.resolve("sr1", SamplingConfig())
