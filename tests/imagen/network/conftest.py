"""Small networks of every sort, and inputs for them."""

import dataclasses

import pytest
import torch

from imagen.network.conditions import Conditions
from imagen.network.config import UNetConfig
from imagen.network.features import sinusoids
from imagen.network.unet import build

BASE = UNetConfig(
    kind="base", channels=1, widths=(8, 16), blocks=(1, 2), self_attention=(False, True),
    cross_attention=(True, True), text_dim=12, cond_dim=16, head_dim=8,
)  # fmt: skip
SR = dataclasses.replace(BASE, kind="efficient")
ALL = dataclasses.replace(
    SR, channels=3, linear_attention=(True, False), middle_attention=True, attention_depth=2,
    feed_forward=2, global_context=True, stem_kernels=(3, 7), downsample_kernels=(2, 4),
    upsample="pixel_shuffle", combine_levels=True, text_latents=4, self_conditioning=True,
    image_channels=2, num_classes=5,
)  # fmt: skip
CONFIGS = {
    "base": BASE,
    "efficient": SR,
    "everything": ALL,
    "everything_base": dataclasses.replace(ALL, kind="base", text_latents=0, channels=5),
    "no_text": dataclasses.replace(BASE, text_dim=0, cross_attention=(False, False)),
}


@pytest.fixture
def configs():
    return CONFIGS


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def inputs():
    """Return x and Conditions that fit a config."""

    def make(config, b=3, size=(8, 8), tokens=5, seed=0):
        g = torch.Generator().manual_seed(seed)
        shape = (b, config.channels, *size)
        given = {"time": sinusoids(torch.randn(b, generator=g)), "keep": torch.ones(b)}
        if config.text_dim:
            given["text_emb"] = torch.randn(b, tokens, config.text_dim, generator=g)
            given["text_mask"] = torch.arange(tokens) < torch.tensor([tokens, 2, 1])[:b, None]
        if config.kind == "efficient":
            given["lowres"] = torch.randn(shape, generator=g)
            given["aug"] = sinusoids(torch.randn(b, generator=g))
        if config.self_conditioning:
            given["x0_previous"] = torch.randn(shape, generator=g)
        if config.image_channels:
            given["image"] = torch.randn(b, config.image_channels, 11, 5, generator=g)
        if config.num_classes:
            given["label"] = torch.arange(b) % config.num_classes
        return torch.randn(shape, generator=g), Conditions(**given)

    return make


@pytest.fixture
def awake():
    """Return a network whose zero-initialised layers are random, so that every input matters."""

    def make(config):
        torch.manual_seed(0)
        net = build(config).eval()
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
        return net

    return make
