import dataclasses

import pytest
import torch

from imagen.diffusion.prediction import target
from imagen.diffusion.samplers import uniform_times
from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr
from imagen.errors import ConfigError
from imagen.member import (
    DiffusionConfig,
    MemberConfig,
    SamplingConfig,
    Text,
    TrainBatch,
    condition_lowres,
    denoiser,
    loss,
)
from imagen.network.unet import UNetConfig, build

NETWORK = UNetConfig(
    kind="base", channels=1, widths=(8, 16), blocks=(1, 1), self_attention=(False, True),
    cross_attention=(False, True), text_dim=12, cond_dim=16, head_dim=8,
)  # fmt: skip
BASE = MemberConfig(size=8, network=NETWORK)
SR = MemberConfig(size=16, network=dataclasses.replace(NETWORK, kind="efficient"))


def text(b, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Text(torch.randn(b, 4, 12, generator=g), torch.ones(b, 4, dtype=torch.bool))


def train_batch(member, b=4):
    g = torch.Generator().manual_seed(1)
    sr = member is SR
    return TrainBatch(
        x0=torch.rand(b, 1, member.size, member.size, generator=g) * 2 - 1,
        eps=torch.randn(b, 1, member.size, member.size, generator=g),
        t=torch.linspace(0.1, 0.9, b).double(),
        text=text(b),
        keep=torch.ones(b),
        lowres=torch.rand(b, 1, 8, 8, generator=g) if sr else None,
        aug_level=torch.linspace(0, 1, b).double() if sr else None,
        aug_eps=torch.randn(b, 1, 8, 8, generator=g) if sr else None,
    )


def awake(member):
    torch.manual_seed(0)
    net = build(member.network).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


class Perfect(torch.nn.Module):
    """Puts out what a perfect network would, for a batch it knows."""

    def __init__(self, member, batch):
        super().__init__()
        self.member, self.batch = member, batch

    def forward(self, *_):
        alpha, sigma = (
            z[:, None, None, None].float() for z in alpha_sigma(cosine_logsnr(self.batch.t))
        )
        kind = self.member.diffusion.prediction
        return target(kind, self.batch.x0, self.batch.eps, alpha, sigma)


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
def test_loss_of_a_perfect_network_is_zero(kind):
    member = dataclasses.replace(BASE, diffusion=DiffusionConfig(prediction=kind))
    batch = train_batch(BASE)
    assert loss(Perfect(member, batch), member, batch).max() < 1e-10


@pytest.mark.parametrize("member", [BASE, SR])
def test_loss_of_a_sample_does_not_depend_on_its_neighbours(member):
    net, batch = awake(member), train_batch(member)
    first = {
        f.name: getattr(batch, f.name)[:1]
        for f in dataclasses.fields(batch)
        if f.name != "text" and getattr(batch, f.name) is not None
    }
    alone = TrainBatch(**first, text=Text(batch.text.emb[:1], batch.text.mask[:1]))
    torch.testing.assert_close(loss(net, member, batch)[:1], loss(net, member, alone))


def test_lowres_is_clean_at_level_zero_and_noise_at_level_one():
    lowres, eps = torch.rand(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    up = torch.nn.functional.interpolate
    for level, wanted in ((0.0, lowres), (1.0, eps)):
        seen, _ = condition_lowres(lowres, torch.tensor([level]), eps, 8)
        expected = up(wanted, (8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(seen, expected, atol=5e-3, rtol=0)


def test_training_and_sampling_show_the_network_the_same_lowres_and_time():
    """Contract 5: what the network receives on both paths, for one state of one image."""
    batch = train_batch(SR, b=1)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, time, emb, mask, keep, lowres, aug):
            seen.append((time, emb, mask, keep, lowres, aug))
            return torch.zeros_like(x)

    loss(Spy(), SR, batch)
    up, aug = condition_lowres(batch.lowres, batch.aug_level, batch.aug_eps, SR.size)
    denoise = denoiser(Spy(), SR, batch.text, 1.0, up, aug)
    denoise(batch.x0, batch.t.item())
    for trained, sampled in zip(*seen, strict=True):
        torch.testing.assert_close(trained, sampled)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (0.0, 2), (3.0, 4)])
def test_guidance_is_one_batched_pass_and_none_at_scales_one_and_zero(scale, rows):
    calls = []
    net = awake(BASE)
    handle = net.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))
    denoiser(net, BASE, text(2), scale)(torch.randn(2, 1, 8, 8), 0.5)
    handle.remove()
    assert calls == [rows]


def test_guided_prediction_is_the_textbook_combination():
    member = dataclasses.replace(BASE, sampling=SamplingConfig(threshold_percentile=1.0))
    net, xt = awake(member), torch.randn(2, 1, 8, 8) * 0.01
    x0 = {w: denoiser(net, member, text(2), w)(xt, 0.02) for w in (0.0, 1.0, 1.5)}
    inside = all(z.abs().max() < 1 for z in x0.values())
    assert inside, "thresholding would hide what is tested"
    torch.testing.assert_close(x0[1.5], x0[0.0] + 1.5 * (x0[1.0] - x0[0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: SamplingConfig(sampler="dppm"), "sampler 'dppm' is none of ddim, dpmpp_2m"),
        (lambda: SamplingConfig(steps=0), "steps 0 is less than 1"),
        (lambda: SamplingConfig(threshold_percentile=99.5), r"99.5 is not in \(0, 1\]"),
        (lambda: SamplingConfig(aug_level=2), r"aug_level 2 is not in \[0, 1\]"),
        (lambda: MemberConfig(size=9, network=NETWORK), "size 9 is no multiple of 2"),
    ],
)
def test_values_out_of_range_are_refused(build_it, message):
    with pytest.raises(ConfigError, match=message):
        build_it()


def test_uniform_times_start_at_noise_and_end_clean():
    assert uniform_times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
