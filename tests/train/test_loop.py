import math

import pytest
import torch

from imagen.data.samples import Bad
from imagen.errors import ImagenError
from train import parallel
from train.config import TrainStageConfig
from train.data import Microbatch, Samples, shares
from train.initial import random as initial
from train.job import Inputs
from train.loop import Trainer, World, crossed

CPU = torch.device("cpu")


class Lone(Trainer):
    """One rank of a world whose other ranks run in the same test; DDP's mean is made there."""

    def _share(self) -> parallel.Alone:
        return parallel.Alone(self.net)


def trainer(config: TrainStageConfig, member: str, rank: int = 0, world: int = 1) -> Trainer:
    net = initial(config.members[member].network, config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in net.parameters():  # the zero-initialised output would hide most gradients
            weight.data += 0.05 * torch.randn_like(weight)
    cls = Trainer if world == 1 else Lone
    return cls(net, config.members[member], config.of(member), World(rank, world, CPU), config.seed)


def samples(config: TrainStageConfig, member: str) -> Samples:
    return Inputs.open(config, member).samples(config, member)


def gradient(one: Trainer, parts: list[Microbatch]) -> torch.Tensor:
    one.backward(parts)
    return torch.cat([w.grad.flatten() for w in one.weights if w.grad is not None])


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("microbatch", [2, 8])
@pytest.mark.parametrize("member", ["base", "sr1"])
def test_the_gradient_is_the_same_for_any_world(helpers, project, member, microbatch, world):
    config = helpers.make_config(project, microbatch=microbatch)
    data = samples(config, member)
    whole = gradient(trainer(config, member), [data.__getitems__(range(8))])
    ranks = []
    for rank in range(world):
        parts = [data.__getitems__(list(part)) for part in shares(8, microbatch, rank, world)]
        ranks.append(gradient(trainer(config, member, rank, world), parts))
    mean = torch.stack(ranks).mean(0)
    assert (mean - whole).norm() / whole.norm() < 1e-5


def test_a_bad_sample_adds_nothing_to_the_gradient(helpers, project: str):
    config = helpers.make_config(project)
    batch = samples(config, "base").__getitems__(range(8))
    weight = torch.tensor([1.0] * 7 + [0.0])
    unusable = Bad("k", "unreadable", "no image")
    spoiled = batch._replace(pixels=batch.pixels.clone(), weight=weight, bad=(unusable,))
    spoiled.pixels[7] = 0
    one = trainer(config, "base")
    found = gradient(one, [spoiled])
    seven = [samples(config, "base").__getitems__(range(7))]
    assert torch.allclose(found, gradient(trainer(config, "base"), seven), atol=1e-6)
    loss, bad = one.look()
    assert bad == [unusable]
    assert loss == pytest.approx(float(trainer_loss(config, seven)), rel=1e-6)


def trainer_loss(config: TrainStageConfig, parts: list[Microbatch]) -> float:
    one = trainer(config, "base")
    one.backward(parts)
    return one.look()[0]


def test_a_step_that_is_not_finite_is_skipped_and_counted(helpers, project: str):
    config = helpers.make_config(project)
    one = trainer(config, "base")
    good = samples(config, "base").__getitems__(range(8))
    one.step([good])
    before = {name: tensor.clone() for name, tensor in one.state().items()}
    one.step([good._replace(eps=torch.full_like(good.eps, math.inf))])
    assert one.counts.skipped_steps == 1
    assert one.images_seen == 16
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state().items())
    expected = trainer_loss(config, [good])
    assert one.look()[0] == pytest.approx(expected, rel=1e-6)  # of the first step


def test_a_loss_that_is_not_finite_leaves_those_beside_it(helpers, project: str):
    config = helpers.make_config(project)
    good = samples(config, "base").__getitems__(range(8))
    eps = good.eps.clone()
    eps[7] = math.nan
    one = trainer(config, "base")
    one.step([good._replace(eps=eps)])
    seven = [samples(config, "base").__getitems__(range(7))]
    assert one.look()[0] == pytest.approx(trainer_loss(config, seven), rel=1e-5)
    one.step([good._replace(eps=torch.full_like(eps, math.nan))])
    assert math.isnan(one.look()[0])  # nothing to tell


def test_a_run_that_diverged_is_given_up(helpers, project: str):
    config = helpers.make_config(project)
    one = trainer(config, "base")
    good = samples(config, "base").__getitems__(range(8))
    broken = [good._replace(eps=torch.full_like(good.eps, math.nan))]

    def go_on() -> None:
        while one.images_seen < 8 * 100:
            one.step(broken)

    with pytest.raises(ImagenError, match="training diverged: 51 steps in a row"):
        go_on()


def test_a_restored_trainer_continues_bit_by_bit(helpers, project: str):
    config = helpers.make_config(project)
    data = samples(config, "sr1")
    went = trainer(config, "sr1")
    for step in range(3):
        went.step([data.__getitems__(range(8 * step, 8 * step + 8))])
    state = {name: tensor.clone() for name, tensor in went.state().items()}
    resumed = trainer(config, "sr1")
    for name, tensor in resumed.readable(state).items():
        tensor.copy_(state[name])
    resumed.restored(24, {"counts": {"bad_samples": 0, "skipped_steps": 0}}, state)
    for step in range(3, 6):
        batch = data.__getitems__(range(8 * step, 8 * step + 8))
        went.step([batch])
        resumed.step([batch])
    assert went.state().keys() == resumed.state().keys()
    assert all(torch.equal(t, resumed.state()[name]) for name, t in went.state().items())


def test_new_networks_are_the_same_and_leave_torchs_seed_alone(helpers, project: str):
    network = helpers.make_config(project).members["base"].network
    torch.manual_seed(0)
    first = initial(network, 3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    second = initial(network, 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert any(not torch.equal(t, first[n]) for n, t in initial(network, 4).state_dict().items())


@pytest.mark.parametrize(
    ("every", "before", "after", "expected"),
    [
        (40, 32, 40, True),
        (40, 40, 48, False),
        (20, 16, 24, True),
        (8, 8, 16, True),
        (99, 152, 160, True),
    ],
)
def test_intervals_end_at_steps(every: int, before: int, after: int, expected: bool):
    assert crossed(every, before, after, 160) is expected
