import dataclasses

import pytest
import torch

from imagen.diffusion.losses import weight
from imagen.diffusion.prediction import target
from imagen.diffusion.schedule import alpha_sigma, train_logsnr
from imagen.errors import ConfigError
from imagen.inputs import features
from imagen.member import DiffusionConfig, MemberConfig, SamplingConfig, Text, loss, present

PREDICTIONS = ["v", "eps", "x0", "edm", "flow"]


class Perfect(torch.nn.Module):
    """Puts out what a perfect network would, for a batch it knows."""

    def __init__(self, member, batch, offset=0.0):
        super().__init__()
        self.member, self.batch, self.offset = member, batch, offset

    def forward(self, *_):
        diffusion = self.member.diffusion
        levels = alpha_sigma(train_logsnr(diffusion, self.batch.t))
        alpha, sigma = (z[:, None, None, None].float() for z in levels)
        out = target(diffusion.prediction, self.batch.x0, self.batch.eps, alpha, sigma)
        return out + self.offset


def diffusing(member, **keys):
    return dataclasses.replace(member, diffusion=DiffusionConfig(**keys))


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["cosine", "linear", "edm", "rectified"])
def test_loss_of_a_perfect_network_is_zero(toy, kind, schedule):
    member = diffusing(toy.BASE, prediction=kind, schedule=schedule, logsnr_shift=-1.0)
    batch = toy.train_batch(toy.BASE)
    assert loss(Perfect(member, batch), member, batch).max() < 1e-10


@pytest.mark.parametrize(("kind", "expected"), [("l2", 0.25), ("l1", 0.5), ("huber", 0.125)])
def test_each_loss_is_its_mean_over_the_elements(toy, kind, expected):
    member, batch = diffusing(toy.BASE, loss=kind), toy.train_batch(toy.BASE)
    found = loss(Perfect(member, batch, offset=0.5), member, batch)
    torch.testing.assert_close(found, torch.full((4,), expected))


@pytest.mark.parametrize("times", ["uniform", "lognormal"])
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "sigmoid", "v"])
def test_losses_are_weighted_by_the_noise_level_that_was_trained_on(toy, weighting, times):
    member = diffusing(toy.BASE, weighting=weighting, times=times, schedule="edm")
    batch = toy.train_batch(toy.BASE)
    expected = 0.25 * weight(member.diffusion, train_logsnr(member.diffusion, batch.t))
    found = loss(Perfect(member, batch, offset=0.5), member, batch)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_an_edm_network_sees_inputs_of_unit_variance(toy):
    member = diffusing(toy.BASE, prediction="edm", schedule="edm")
    net = toy.Oracle("edm", lambda x, *_: x)
    batch = dataclasses.replace(
        toy.train_batch(toy.BASE, 64), x0=0.5 * torch.randn(64, 1, 8, 8), keep=torch.ones(64)
    )
    loss(net, member, batch)
    (x, _) = net.calls[0]
    assert x.std(dim=(1, 2, 3)).sub(1).abs().max() < 0.4
    assert abs(x.std() - 1) < 0.03


@pytest.mark.parametrize("name", ["BASE", "SR", "ALL", "BARE"])
def test_loss_of_a_sample_does_not_depend_on_its_neighbours(toy, name):
    member = getattr(toy, name)
    net, batch = toy.awake(member), toy.train_batch(member)
    first = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Text):
            first[field.name] = Text(value.emb[:1], value.mask[:1])
        else:
            first[field.name] = None if value is None else value[:1]
    alone = type(batch)(**first)
    together = loss(net, member, batch)[:1]
    torch.testing.assert_close(together, loss(net, member, alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["BASE", "SR", "ALL", "BARE"])
def test_the_gradient_reaches_every_parameter(toy, name, bf16):
    member = getattr(toy, name)
    net, batch = toy.awake(member).train(), toy.train_batch(member)
    batch = dataclasses.replace(batch, keep=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = loss(net, member, batch)
    assert losses.dtype == torch.float32
    losses.sum().backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_crops_are_trained_on_at_their_own_size(toy):
    batch = toy.train_batch(toy.SR)
    crop = dataclasses.replace(
        batch,
        **{key: getattr(batch, key)[..., :8, :8] for key in ("x0", "eps")},
        **{key: getattr(batch, key)[..., :4, :4] for key in ("lowres", "aug_eps")},
    )
    net = toy.Oracle("v", lambda x, *_: x)
    assert loss(net, toy.SR, crop).shape == (4,)
    (x, conditions) = net.calls[0]
    assert x.shape == conditions.lowres.shape == (4, 1, 8, 8)


def test_an_empty_caption_is_the_null_text_in_training(toy):
    net, batch = toy.awake(toy.BASE), toy.train_batch(toy.BASE)
    mask = batch.text.mask.clone()
    mask[1, 1:] = False
    empty = dataclasses.replace(batch, text=Text(batch.text.emb, mask))
    dropped = dataclasses.replace(batch, keep=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert present(empty.text).tolist() == [1, 0, 1, 1]
    torch.testing.assert_close(loss(net, toy.BASE, empty), loss(net, toy.BASE, dropped))
    assert (loss(net, toy.BASE, empty) - loss(net, toy.BASE, batch))[1].abs() > 1e-4


def test_an_empty_caption_does_not_hide_the_label(toy):
    net, batch = toy.awake(toy.ALL), toy.train_batch(toy.ALL)
    empty = Text(batch.text.emb, torch.zeros_like(batch.text.mask))
    unlabelled = dataclasses.replace(batch, text=empty, keep=torch.zeros(4))
    labelled = dataclasses.replace(batch, text=empty)
    difference = loss(net, toy.ALL, labelled) - loss(net, toy.ALL, unlabelled)
    assert (difference.abs() > 1e-5).all()


def test_label_and_image_each_change_the_loss(toy):
    net, batch = toy.awake(toy.ALL), toy.train_batch(toy.ALL)
    plain = loss(net, toy.ALL, batch)
    for key, value in (("label", (batch.label + 1) % 5), ("image", -batch.image)):
        other = loss(net, toy.ALL, dataclasses.replace(batch, **{key: value}))
        assert ((other - plain).abs() > 1e-6).all(), key


class SelfConditioned(torch.nn.Module):
    """A network that notes what it sees, and whose output is one parameter everywhere."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Parameter(torch.tensor(0.3))
        self.seen = []

    def forward(self, x, conditions):
        self.seen.append((x, conditions.x0_previous, torch.is_grad_enabled()))
        return self.out.expand_as(x)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_self_conditioning_shows_the_first_estimate_to_chosen_rows_and_keeps_the_target(toy, kind):
    member = diffusing(toy.with_network(toy.BASE, self_conditioning=True), prediction=kind)
    batch, net = toy.train_batch(member), SelfConditioned()
    losses = loss(net, member, batch)
    (x, none, with_grad), (again, estimate, _) = net.seen
    assert none is None
    assert not with_grad
    assert torch.equal(x, again)
    assert not estimate.requires_grad
    assert not estimate[batch.self_cond == 0].any()
    shown = estimate[batch.self_cond == 1]
    assert shown.any()
    assert shown.abs().max() <= 1
    plain = loss(SelfConditioned(), diffusing(toy.BASE, prediction=kind), toy.train_batch(toy.BASE))
    assert torch.equal(losses, plain), "the target is the same, whatever the network saw"


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_first_estimate_of_a_perfect_network_is_the_image(toy, kind):
    member = diffusing(toy.with_network(toy.BASE, self_conditioning=True), prediction=kind)
    batch, seen = toy.train_batch(member), []

    class Spy(Perfect):
        def forward(self, x, conditions):
            seen.append(conditions.x0_previous)
            return super().forward(x, conditions)

    loss(Spy(member, batch), member, batch)
    rows = batch.self_cond == 1
    torch.testing.assert_close(seen[1][rows], batch.x0[rows], atol=2e-4, rtol=0)


def test_features_are_finite_at_zero_and_at_infinite_snr():
    ends = features(torch.tensor([-torch.inf, torch.inf, -20.0, 20.0]))
    assert ends.isfinite().all()
    assert torch.equal(ends[:2], ends[2:])


def test_a_size_is_one_number_or_height_and_width(toy):
    assert toy.BASE.shape == (8, 8)
    assert toy.ALL.shape == (16, 24)


@pytest.mark.parametrize(
    ("size", "message"),
    [(9, "size 9 is no multiple of 2"), ((8, 7), "size 7 is no"), (0, "size 0"), ((-2, 8), "-2")],
)
def test_sizes_that_the_network_cannot_halve_are_refused(toy, size, message):
    with pytest.raises(ConfigError, match=message):
        MemberConfig(size=size, network=toy.NETWORK)


def test_configs_are_still_imported_from_here():
    assert DiffusionConfig().prediction == "v"
    assert SamplingConfig().sampler == "dpmpp_2m"
