"""A picture of every part together, frozen: weights by formula, default options, guidance 3."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from imagen.cascade import Cascade, Member
from imagen.data.randomness import normals
from imagen.network.unet import build
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder

FILE = Path(__file__).parents[1] / "golden" / "picture_tiny.txt"


def awake(member):
    """Return a network of which each weight follows from its name: initialisation may change."""
    net = build(member.network).eval()
    for name, parameter in net.named_parameters():
        z = normals(zlib.crc32(name.encode()), 0, [0], parameter.numel())[0]
        z = torch.from_numpy(z).reshape(parameter.shape)
        norm = parameter.ndim == 1 and name.endswith("weight")
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.data.copy_(norm + z * fan_in**-0.5)
    return net


def written(image):
    """Return an image (h, w) as text, a row a line."""
    return "".join(" ".join(f"{value:.4f}" for value in row) + "\n" for row in image.tolist())


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig())


def test_the_picture_of_a_tiny_cascade_is_frozen(toy, encoder, golden_text):
    members = {}
    for name, member in {"base": toy.BASE, "sr1": toy.SR}.items():
        config = toy.with_network(member, text_dim=encoder.dim)
        members[name] = Member(config, awake(config), {})
    cascade = Cascade(members, encoder, "")
    assert {c.sampling.guidance_scale for c in cascade.configs.values()} == {3.0}
    found = cascade.sample(["a handwritten seven"], [7])["sr1"][0, 0].numpy()
    assert found.std() > 0.2  # there is something to see
    frozen = FILE.read_text() if FILE.exists() else ""
    picture = np.array([line.split() for line in frozen.splitlines()], np.float32)
    near = picture.shape == found.shape and np.abs(picture - found).max() < 1e-3
    golden_text(FILE.name, frozen if near else written(found))
