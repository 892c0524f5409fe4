import dataclasses
import math

import pytest
import torch

from imagen.diffusion.guidance import ProjectedGuidance
from imagen.diffusion.schedule import alpha_sigma, schedule
from imagen.inputs import condition_lowres
from imagen.member import DiffusionConfig, Given, SamplingConfig, Text, denoiser, loss

LOGSNR = 0.4


def sampled(member, **keys):
    keys = {"threshold": "none"} | keys
    return dataclasses.replace(member, sampling=SamplingConfig(**keys))


def once(net, member, given, xt, logsnr=LOGSNR):
    with torch.inference_mode():
        return denoiser(net, member, given)(xt, logsnr)


def rows_of(net):
    """Note the batch size of each call."""
    calls = []
    net.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


def given_of(toy, member, b=2):
    batch = toy.train_batch(member, b)
    lowres = aug = None
    if batch.lowres is not None:
        lowres, aug = condition_lowres(batch.lowres, batch.aug_level, batch.aug_eps, member.shape)
    return Given(batch.text, None, lowres, aug, batch.label, batch.image)


def test_lowres_is_clean_at_level_zero_and_noise_at_level_one():
    lowres, eps = torch.rand(1, 1, 4, 6), torch.randn(1, 1, 4, 6)
    up = torch.nn.functional.interpolate
    for level, wanted in ((0.0, lowres), (1.0, eps)):
        seen, _ = condition_lowres(lowres, torch.tensor([level]), eps, (8, 12))
        expected = up(wanted, (8, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(seen, expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["SR", "ALL"])
def test_training_and_sampling_show_the_network_the_same(toy, name):
    """Contract 5: what the network receives on both paths, for one state of one image."""
    member = sampled(getattr(toy, name), guidance_scale=1.0)
    batch = toy.train_batch(member, b=1)
    net = toy.Oracle("v", lambda x, *_: x)
    loss(net, member, batch)
    alpha, sigma = (z.float().item() for z in alpha_sigma(schedule(member.diffusion)(batch.t)))
    xt = alpha * batch.x0 + sigma * batch.eps
    once(net, member, given_of(toy, member, 1), xt, schedule(member.diffusion)(batch.t).item())
    (x, trained), (y, seen) = net.calls[-2:]
    torch.testing.assert_close(x, y)
    for field in dataclasses.fields(trained):
        ours, theirs = getattr(trained, field.name), getattr(seen, field.name)
        if field.name != "x0_previous":
            assert (ours is None) == (theirs is None), field.name
            torch.testing.assert_close(ours, theirs, msg=field.name)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (0.0, 2), (3.0, 4)])
def test_guidance_is_one_batched_pass_and_none_at_scales_one_and_zero(toy, scale, rows):
    net = toy.awake(toy.BASE)
    calls = rows_of(net)
    once(net, sampled(toy.BASE, guidance_scale=scale), Given(toy.text(2)), torch.randn(2, 1, 8, 8))
    assert calls == [rows]


@pytest.mark.parametrize("name", ["BASE", "SR", "ALL"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scale_one_is_bit_equal_to_the_conditional_pass_and_zero_to_the_unconditional(
    toy, name, scale
):
    member = sampled(getattr(toy, name), guidance_scale=scale)
    net, xt = toy.awake(member), torch.randn(2, member.network.channels, *member.shape)
    given, calls = given_of(toy, member), []
    net.register_forward_pre_hook(lambda _, args: calls.append(args))
    net.register_forward_hook(lambda *args: calls.append(args[2]))
    found = once(net, member, given, xt)
    (x, conditions), out = calls[0], calls[1]
    assert conditions.keep.tolist() == [scale] * 2
    with torch.inference_mode():
        again = net(x, dataclasses.replace(conditions, keep=torch.full((2,), scale)))
    assert torch.equal(out, again)
    alpha, sigma = (z.float() for z in alpha_sigma(torch.tensor(LOGSNR, dtype=torch.float64)))
    assert torch.equal(found, alpha * xt + (-sigma) * again)


@pytest.mark.parametrize("kind", ["v", "eps", "x0", "edm", "flow"])
def test_guided_prediction_is_the_textbook_combination(toy, kind):
    member = dataclasses.replace(toy.BASE, diffusion=DiffusionConfig(prediction=kind))
    net, xt, given = toy.awake(member), torch.randn(2, 1, 8, 8), Given(toy.text(2))
    x0 = {w: once(net, sampled(member, guidance_scale=w), given, xt) for w in (0.0, 1.0, 1.5)}
    assert (x0[1.0] - x0[0.0]).abs().max() > 1e-3
    torch.testing.assert_close(x0[1.5], x0[0.0] + 1.5 * (x0[1.0] - x0[0.0]), atol=1e-4, rtol=0)


def test_guidance_acts_only_in_its_interval_of_times(toy):
    member = sampled(toy.BASE, guidance_interval=(0.2, 0.6))
    net, xt, given = toy.awake(member), torch.randn(2, 1, 8, 8), Given(toy.text(2))
    calls, times = rows_of(net), torch.tensor([0.1, 0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    for logsnr in schedule(member.diffusion)(times).tolist():
        outside = once(net, member, given, xt, logsnr)
    assert calls == [2, 4, 4, 4, 2]
    plain = once(net, sampled(toy.BASE, guidance_scale=1.0), given, xt, logsnr)
    assert torch.equal(outside, plain)


def test_projected_guidance_combines_the_two_estimates_with_its_memory(toy):
    member = sampled(toy.BASE, guidance="apg", guidance_scale=4.0)
    net, given = toy.awake(member), Given(toy.text(2))
    project, denoise = ProjectedGuidance(), denoiser(net, member, given)
    for seed in (0, 1):
        xt = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        cond, uncond = (
            once(net, sampled(toy.BASE, guidance_scale=w), given, xt) for w in (1.0, 0.0)
        )
        with torch.inference_mode():
            found = denoise(xt, LOGSNR)
        torch.testing.assert_close(found, project(cond, uncond, 4.0), atol=1e-5, rtol=1e-4)


def test_a_negative_prompt_is_the_second_half_and_is_seen(toy):
    member = sampled(toy.BASE, guidance_scale=3.0)
    net, xt = toy.awake(member), torch.randn(2, 1, 8, 8)
    words, unwanted = toy.text(2, tokens=3), toy.text(2, seed=1, tokens=6)
    found = once(net, member, Given(words, unwanted), xt)
    plain = sampled(toy.BASE, guidance_scale=1.0)
    cond, other = once(net, plain, Given(words), xt), once(net, plain, Given(unwanted), xt)
    torch.testing.assert_close(found, other + 3 * (cond - other), atol=1e-4, rtol=0)
    alone = sampled(toy.BASE, guidance_scale=0.0)
    assert torch.equal(once(net, alone, Given(words, unwanted), xt), other)


def test_an_empty_negative_prompt_and_an_empty_prompt_are_the_null_text(toy):
    member = sampled(toy.BASE, guidance_scale=3.0)
    net, xt, words = toy.awake(member), torch.randn(2, 1, 8, 8), toy.text(2)
    empty = Text(words.emb[:, :1], words.mask[:, :1])
    plain = once(net, member, Given(words), xt)
    torch.testing.assert_close(once(net, member, Given(words, empty), xt), plain)
    null = once(net, sampled(toy.BASE, guidance_scale=0.0), Given(words), xt)
    torch.testing.assert_close(once(net, member, Given(empty), xt), null, atol=1e-5, rtol=0)


def test_a_class_is_guided_without_text(toy):
    member = sampled(toy.with_network(toy.BARE, num_classes=3), guidance_scale=2.0)
    net, xt = toy.awake(member), torch.randn(2, 1, 8, 8)
    calls, given = rows_of(net), Given(label=torch.tensor([0, 2]))
    x0 = {w: once(net, sampled(member, guidance_scale=w), given, xt) for w in (0.0, 1.0, 2.0)}
    assert calls == [2, 2, 4]
    torch.testing.assert_close(x0[2.0], 2 * x0[1.0] - x0[0.0], atol=1e-4, rtol=0)
    assert (x0[1.0] - x0[0.0]).abs().max() > 1e-3


def test_a_network_without_text_and_class_runs_once(toy):
    net = toy.awake(toy.BARE)
    calls = rows_of(net)
    once(net, sampled(toy.BARE, guidance_scale=5.0), Given(), torch.randn(2, 1, 8, 8))
    assert calls == [2]


@pytest.mark.parametrize("threshold", ["dynamic", "static", "none"])
def test_the_estimate_is_thresholded_as_asked(toy, threshold):
    member = sampled(toy.BASE, guidance_scale=1.0, threshold=threshold)
    x = torch.linspace(-3, 3, 64).reshape(1, 1, 8, 8)
    net = toy.Oracle("v", lambda *_: x)
    found = once(net, member, Given(toy.text(1)), torch.randn(1, 1, 8, 8))
    s = torch.quantile(x.abs(), 0.995)
    expected = {"dynamic": x.clamp(-s, s) / s, "static": x.clamp(-1, 1), "none": x}[threshold]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_self_conditioning_sees_the_thresholded_guided_estimate_of_the_call_before(toy):
    member = toy.with_network(toy.BASE, self_conditioning=True)
    member = sampled(member, threshold="dynamic", threshold_percentile=0.9)
    net = toy.awake(member)
    calls = []
    net.register_forward_pre_hook(lambda _, args: calls.append(args[1].x0_previous))
    for _ in range(2):  # a new trajectory knows nothing of the one before
        denoise = denoiser(net, member, Given(toy.text(2)))
        with torch.inference_mode():
            results = [denoise(torch.randn(2, 1, 8, 8), LOGSNR) for _ in range(3)]
        first, *others = calls[-3:]
        assert first is None
        for seen, result in zip(others, results, strict=False):
            assert torch.equal(seen, result.repeat(2, 1, 1, 1))


def test_pure_noise_at_zero_snr_gives_a_finite_estimate(toy):
    diffusion = DiffusionConfig(zero_terminal_snr=True)
    member = sampled(dataclasses.replace(toy.BASE, diffusion=diffusion))
    net = toy.awake(member)
    x0 = once(net, member, Given(toy.text(2)), torch.randn(2, 1, 8, 8), -math.inf)
    assert x0.isfinite().all()


def test_fifty_pad_tokens_change_nothing(toy):
    net, xt, words = toy.awake(toy.BASE), torch.randn(2, 1, 8, 8), toy.text(2)
    more = Text(
        torch.cat([words.emb, torch.randn(2, 50, 12)], dim=1),
        torch.cat([words.mask, torch.zeros(2, 50, dtype=torch.bool)], dim=1),
    )
    plain, padded = (once(net, sampled(toy.BASE), Given(t), xt) for t in (words, more))
    torch.testing.assert_close(plain, padded, atol=1e-5, rtol=0)
