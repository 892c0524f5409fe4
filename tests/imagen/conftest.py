"""Toy members, batches for them, and networks that know the answer."""

import dataclasses
import io
import types

import pytest
import torch
from PIL import Image

from imagen.diffusion.prediction import from_x0, input_scale
from imagen.diffusion.schedule import alpha_sigma
from imagen.member import MemberConfig, Text, TrainBatch
from imagen.network.config import UNetConfig
from imagen.network.features import sinusoids
from imagen.network.unet import build

NETWORK = UNetConfig(
    kind="base", channels=1, widths=(8, 16), blocks=(1, 1), self_attention=(False, True),
    cross_attention=(False, True), text_dim=12, cond_dim=16, head_dim=8,
)  # fmt: skip
BASE = MemberConfig(size=8, network=NETWORK)
SR = MemberConfig(size=16, network=dataclasses.replace(NETWORK, kind="efficient"))
ALL = MemberConfig(
    size=(16, 24),
    network=dataclasses.replace(
        NETWORK, kind="efficient", channels=3, self_conditioning=True, image_channels=2,
        num_classes=5,
    ),
)  # fmt: skip
BARE = MemberConfig(
    size=8, network=dataclasses.replace(NETWORK, text_dim=0, cross_attention=(False, False))
)
GRID = torch.linspace(-20, 20, 40001, dtype=torch.float64)
TABLE = sinusoids(GRID)


def with_network(member, **keys):
    return dataclasses.replace(member, network=dataclasses.replace(member.network, **keys))


def text(b, seed=0, tokens=4, dim=12):
    g = torch.Generator().manual_seed(seed)
    return Text(torch.randn(b, tokens, dim, generator=g), torch.ones(b, tokens, dtype=torch.bool))


def train_batch(member, b=4):
    g = torch.Generator().manual_seed(1)
    network, (h, w) = member.network, member.shape
    shape, low = (b, network.channels, h, w), (b, network.channels, h // 2, w // 2)
    sr = network.kind == "efficient"
    pictures = (b, network.image_channels, 5, 7)
    return TrainBatch(
        x0=torch.rand(shape, generator=g) * 2 - 1,
        eps=torch.randn(shape, generator=g),
        t=torch.linspace(0.1, 0.9, b).double(),
        text=text(b) if network.text_dim else None,
        keep=torch.ones(b),
        lowres=torch.rand(low, generator=g) * 2 - 1 if sr else None,
        aug_level=torch.linspace(0, 1, b).double() if sr else None,
        aug_eps=torch.randn(low, generator=g) if sr else None,
        label=torch.arange(b) % network.num_classes if network.num_classes else None,
        image=torch.rand(pictures, generator=g) * 2 - 1 if network.image_channels else None,
        self_cond=torch.arange(b).float() % 2 if network.self_conditioning else None,
    )


def moved(values, device):
    """Return a batch, or what a trajectory is given, on a device."""
    changed = {}
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if isinstance(value, Text):
            changed[field.name] = Text(value.emb.to(device), value.mask.to(device))
        else:
            changed[field.name] = None if value is None else value.to(device)
    return dataclasses.replace(values, **changed)


def awake(member):
    """Return a network whose zero-initialised layers are random, so that every input matters."""
    torch.manual_seed(0)
    net = build(member.network).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def logsnr_of(time):
    """Undo the features of log-SNR by looking their values up: (b, f) -> (b,)."""
    return GRID[torch.cdist(time, TABLE).argmin(dim=1)]


class Oracle(torch.nn.Module):
    """Puts out what belongs to the x0 that `best(xt, alpha, sigma, conditions)` returns."""

    def __init__(self, kind, best):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.kind, self.best, self.calls = kind, best, []

    def forward(self, x, conditions):
        self.calls.append((x, conditions))
        alpha, sigma = (
            z.float()[:, None, None, None] for z in alpha_sigma(logsnr_of(conditions.time))
        )
        xt = x / input_scale(self.kind, alpha, sigma)
        return from_x0(self.kind, self.best(xt, alpha, sigma, conditions), xt, alpha, sigma)


@pytest.fixture(scope="session")
def toy():
    """What tests of this folder share: tests are no package, so they cannot import it."""
    return types.SimpleNamespace(
        NETWORK=NETWORK, BASE=BASE, SR=SR, ALL=ALL, BARE=BARE, Oracle=Oracle, awake=awake,
        logsnr_of=logsnr_of, moved=moved, text=text, train_batch=train_batch,
        with_network=with_network,
    )  # fmt: skip


@pytest.fixture
def png():
    """Return the bytes of a picture file of some pixels."""

    def encoded(array, kind="PNG", **options):
        out = io.BytesIO()
        Image.fromarray(array).save(out, kind, **options)
        return out.getvalue()

    return encoded
