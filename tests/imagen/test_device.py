"""Loss, denoiser and sampling mix no devices: on the meta device, that is an error.

Numbers on the host (0-dimensional tensors) may meet it, as they may meet a GPU.
"""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagen.editing import Canvas
from imagen.inputs import condition_lowres
from imagen.member import DiffusionConfig, Given, SamplingConfig, denoiser, loss
from imagen.network.unet import build
from imagen.sampling import draw, noised_lowres

pytestmark = pytest.mark.slow  # the first operation on the meta device imports for seconds

META = torch.device("meta")


def network(member):
    with META:
        return build(member.network)


def given_of(toy, member):
    batch = toy.moved(toy.train_batch(member, 2), META)
    lowres = aug = None
    if batch.lowres is not None:
        lowres, aug = noised_lowres(member, 1, batch.lowres, [0, 1])
        assert lowres.device == aug.device == META
    negative = toy.moved(toy.text(2, tokens=6), META) if batch.text is not None else None
    return Given(batch.text, negative, lowres, aug, batch.label, batch.image)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ALL", {}),
        ("BASE", {"zero_terminal_snr": True, "weighting": "sigmoid"}),
        ("BARE", {"prediction": "edm", "schedule": "edm", "times": "lognormal"}),
        ("BARE", {"prediction": "flow", "schedule": "rectified", "loss": "huber"}),
    ],
)
def test_training_stays_on_the_batchs_device(toy, name, keys):
    member = dataclasses.replace(getattr(toy, name), diffusion=DiffusionConfig(**keys))
    losses = loss(network(member), member, toy.moved(toy.train_batch(member), META))
    assert losses.device == META
    losses.sum().backward()


class Copies(TorchDispatchMode):
    """Notes the operations that take or make a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if any(t.device != META for t in tensors):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("name", ["ALL", "BASE"])
def test_a_training_step_copies_nothing_between_host_and_device(toy, name):
    """Each copy would wait for the device until all before it is done."""
    member = getattr(toy, name)
    net, batch = network(member), toy.moved(toy.train_batch(member), META)
    with Copies() as copies:
        loss(net, member, batch)
    assert copies.found == []


def test_the_level_of_the_lowres_image_may_lie_on_the_host(toy):
    batch = toy.train_batch(toy.SR)
    there = toy.moved(batch, META)
    for level in (batch.aug_level, there.aug_level):
        seen, aug = condition_lowres(there.lowres, level, there.aug_eps, (16, 16))
        assert seen.device == aug.device == META


@pytest.mark.parametrize(
    ("name", "keys"),
    [("BARE", {}), ("ALL", {"guidance": "apg", "guidance_interval": (0.0, 0.8)})],
)
def test_the_denoiser_stays_on_the_images_device(toy, name, keys):
    member = dataclasses.replace(getattr(toy, name), sampling=SamplingConfig(**keys))
    denoise = denoiser(network(member), member, given_of(toy, member))
    x = torch.empty(2, member.network.channels, *member.shape, device=META)
    for logsnr in (-torch.inf, 0.0):
        assert denoise(x, logsnr).device == META


@pytest.mark.parametrize(("name", "masked"), [("SR", None), ("BARE", False), ("BARE", True)])
def test_what_is_drawn_is_on_the_networks_device(toy, name, masked):
    sampling = SamplingConfig(sampler="dpmpp_2m_sde", steps=2)
    member = dataclasses.replace(getattr(toy, name), sampling=sampling)
    image = torch.empty(2, member.network.channels, *member.shape, device=META)
    mask = image[:, :1] > 0 if masked else None
    canvas = None if masked is None else Canvas(image, mask, 0.5, 2)
    given = given_of(toy, member)
    out = draw(network(member), member, 1, given, [0, 1], lambda _: None, canvas)
    assert (out.device, out.shape) == (META, image.shape)


def test_a_batch_that_is_left_on_the_host_is_noticed(toy):
    """What the tests above rely on."""
    left = dataclasses.replace(
        toy.moved(toy.train_batch(toy.BASE), META), eps=torch.zeros(4, 1, 8, 8)
    )
    with pytest.raises(RuntimeError, match="device"):
        loss(network(toy.BASE), toy.BASE, left)
