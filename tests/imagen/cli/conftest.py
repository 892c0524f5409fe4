"""Untrained cascades of random weights, and the `imagen` command run on them."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import cascade, cli, snapshot
from imagen import config as configs
from imagen.member import MemberConfig
from imagen.network.unet import build
from imagen.text.config import TextConfig
from imagen.text.encoder import encoder_fingerprint

NETWORK = {"text_dim": 256, "cond_dim": 16, "head_dim": 16}
BASE = NETWORK | {
    "kind": "base", "widths": [16], "blocks": [1], "self_attention": [False],
    "cross_attention": [True],
}  # fmt: skip
SR = NETWORK | {
    "kind": "efficient", "widths": [16, 16], "blocks": [1, 1],
    "self_attention": [False, False], "cross_attention": [False, True],
}  # fmt: skip
SIZES = {"grey": (1, {"base": 8, "sr1": 16}), "colour": (3, {"base": [8, 12], "sr1": [16, 24]})}


def make(root, kind):
    """Assemble a cascade: `grey` draws 16 x 16, `colour` 24 wide and 16 high."""
    text = TextConfig()
    code = encoder_fingerprint(text)
    channels, sizes = SIZES[kind]
    torch.manual_seed(0)
    for name, size in sizes.items():
        network = (BASE if name == "base" else SR) | {"channels": channels}
        tree = {"size": size, "network": network, "sampling": {"steps": 3 if name == "base" else 2}}
        config = configs.build(MemberConfig, tree)
        state = build(config.network).state_dict()
        state = {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}
        facts = {"images_seen": 64, "encoder_fingerprint": code}
        snapshot.save(str(root / name), name, config, state, facts)
    cascade.assemble(str(root / "all"), {n: str(root / n) for n in sizes}, text, code)
    return str(root / "all")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of a cascade that draws grey squares."""
    return make(tmp_path_factory.mktemp("grey"), "grey")


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory):
    """Folder of a cascade that draws colour pictures, wider than high."""
    return make(tmp_path_factory.mktemp("colour"), "colour")


@pytest.fixture(scope="session")
def loaded_once():
    """Let commands of this process share a cascade: loading it is most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade.Cascade, "load", functools.lru_cache(cascade.Cascade.load))
        yield


@pytest.fixture
def imagen(loaded_once, folder, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; return (exit code, stdout lines, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(command, *words, cascade_folder=folder):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, *words, "--cascade", cascade_folder])
        out, err = capsys.readouterr()
        return caught.value.code, out.splitlines(), err

    return run


@pytest.fixture
def pixels():
    """Read the pixels of a picture file."""

    def read(path):
        with Image.open(path) as image:
            return np.asarray(image)

    return read


@pytest.fixture
def record():
    """Read a provenance file."""

    def read(path):
        with open(path) as file:
            return json.load(file)

    return read
