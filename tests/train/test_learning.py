"""Everything at once learns: crops, bf16, recomputed levels, self-conditioning, each prediction."""

import dataclasses

import pytest
import torch

from train.config import TrainStageConfig
from train.initial import random as initial
from train.job import Inputs
from train.loop import Trainer, World
from train.worker import prepare

CPU = torch.device("cpu")
STEPS = 40

EDM = {"prediction": "edm", "schedule": "edm", "weighting": "edm", "times": "lognormal"}
CASES = {  # and the most that the loss of the last ten steps may be of that of the first ten
    "v": ({"prediction": "v"}, 0.7),  # measured 0.59
    "eps": ({"prediction": "eps"}, 0.3),  # 0.19
    "x0, weighted as v": ({"prediction": "x0", "weighting": "v"}, 0.2),  # 0.08
    "edm": (EDM, 0.85),  # 0.75
    "flow": ({"prediction": "flow", "schedule": "rectified"}, 0.55),  # 0.41
}


def everything(helpers, project: str, diffusion: dict) -> TrainStageConfig:
    """Return a config whose SR member, 8 -> 32, trains on crops of 16 with every option on."""
    config = helpers.make_config(project, precision="bf16", warmup_images=64, images=64 * STEPS)
    config = helpers.changed(
        config, "sr1", size=32, network={"self_conditioning": True}, diffusion=diffusion
    )
    section = dataclasses.replace(config.train["sr1"], crop_px=16, checkpoint_levels=(0, 1))
    return dataclasses.replace(config, train={"sr1": section})


@pytest.mark.slow
@pytest.mark.parametrize(("diffusion", "share"), CASES.values(), ids=CASES)
def test_a_super_resolution_member_learns_with_every_option_on(helpers, project, diffusion, share):
    config = everything(helpers, project, diffusion)
    member, train = config.members["sr1"], config.of("sr1")
    net = initial(member.network, config.seed)
    prepare(net, train, CPU)
    one = Trainer(net, member, train, World(0, 1, CPU), config.seed)
    data, losses = Inputs.open(config, "sr1").samples(config, "sr1"), []
    for step in range(STEPS):
        part = data.__getitems__(range(8 * step, 8 * step + 8))
        if step == 0:
            one.check(part)
        one.step([part])
        losses.append(one.look()[0])
    assert part.pixels.shape == (8, 1, 16, 16)
    assert one.counts.skipped_steps == 0
    assert sum(losses[-10:]) < share * sum(losses[:10])
