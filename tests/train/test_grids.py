import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.network.unet import UNet, build
from train import grids
from train.config import TrainStageConfig
from train.heldout import HeldOut


def few_steps(helpers, project: str) -> TrainStageConfig:
    config = helpers.make_config(project, grid=3)
    for name in config.members:
        config = helpers.changed(config, name, sampling={"steps": 2, "guidance_scale": 2.0})
    return config


def network(config: TrainStageConfig, member: str) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(config.members[member].network).eval()
        for weight in net.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return net


def drawn(config: TrainStageConfig, member: str, count: int = 3) -> np.ndarray:
    heldout = HeldOut.open(config, member, 8)
    samples = grids.shown(heldout, count)
    index = list(config.members).index(member)
    net = network(config, member)
    data = grids.grid(net, config.members[member], index, heldout, samples)
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


@pytest.mark.parametrize("member", ["base", "sr1"])
def test_the_same_snapshot_draws_the_same_picture(helpers, project: str, member: str):
    config = few_steps(helpers, project)
    first = drawn(config, member)
    assert (drawn(config, member) == first).all()
    assert len(np.unique(first)) > 16  # pictures and words


def test_pictures_do_not_depend_on_what_is_drawn_beside_them(
    helpers, project: str, monkeypatch: pytest.MonkeyPatch
):
    config = few_steps(helpers, project)
    together = drawn(config, "base")
    monkeypatch.setattr(grids, "BATCH", 1)
    assert np.abs(drawn(config, "base").astype(int) - together).max() <= 1


def test_a_grid_shows_its_captions_and_leaves_out_what_cannot_be_read(helpers, project: str):
    config = few_steps(helpers, project)
    heldout = HeldOut.open(config, "base", 8)
    first, second, *_ = grids.shown(heldout, 4)
    assert (first.number, second.number) == (0, 1)
    shard, row = heldout.places[0]
    tar = Path(heldout.prepared.shards[shard].tar)
    image = heldout.prepared.image(shard, row)
    tar.write_bytes(tar.read_bytes().replace(image, bytes(len(image))))
    again = grids.shown(HeldOut.open(config, "base", 8), 4)
    assert [sample.number for sample in again] == [1, 2, 3, 4]
    assert heldout.caption(1).split()[-1].isdigit()


def test_a_super_resolution_member_starts_from_the_real_picture(helpers, project: str):
    config = few_steps(helpers, project)
    (sample,) = grids.shown(HeldOut.open(config, "sr1", 8), 1)
    real, small = sample.planes
    assert (real.shape, small.shape) == ((1, 16, 16), (1, 8, 8))
    assert np.abs(real.reshape(1, 8, 2, 8, 2).mean(axis=(2, 4)) - small).mean() < 20
    base = drawn(config, "base", 1)
    sr1 = drawn(config, "sr1", 1)
    assert base.shape[1] > sr1.shape[1]  # three seeds and the real one; from, one seed, the real


def test_members_without_text_are_drawn_too(helpers, project: str):
    config = few_steps(helpers, project)
    network = {"text_dim": 0, "cross_attention": (False,)}
    config = helpers.changed(config, "base", network=network)
    assert dataclasses.asdict(config.members["base"])["network"]["text_dim"] == 0
    assert drawn(config, "base", 1).size
