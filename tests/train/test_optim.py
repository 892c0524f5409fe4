import pytest
import torch
from torch import nn

from train import optim
from train.config import TrainConfig


def config(**changes: object) -> TrainConfig:
    every = {"checkpoint_every": 100, "snapshot_every": 100, "log_every": 10}
    return TrainConfig(
        **(
            {"images": 1000, "global_batch": 10, "microbatch": 10, "lanes": 1, "lr": 0.5}
            | every
            | changes
        )
    )


def test_the_learning_rate_rises_stays_and_falls():
    c = config(warmup_images=100, decay_images=500)
    rates = [optim.learning_rate(c, seen) for seen in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9:50] == pytest.approx([0.5] * 41)
    assert rates[75] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.5)


def test_without_warmup_and_decay_the_learning_rate_is_constant():
    assert {optim.learning_rate(config(), seen) for seen in range(0, 1000, 10)} == {0.5}


def network() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 3))
    return net.to(memory_format=torch.channels_last)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    net(torch.randn(5, 4, 3, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_state_that_went_through_a_file_continues_bit_by_bit():
    torch.manual_seed(0)
    net, other = network(), network()
    went, resumed = optim.build(net, config()), optim.build(other, config())
    for seed in range(3):
        step(net, went, seed)
    other.load_state_dict(net.state_dict())
    # files hold tensors in plain order, whatever the layout in memory
    state = {name: t.contiguous() for name, t in optim.state_tensors(went, net).items()}
    optim.load_state_tensors(resumed, other, state)
    for seed in range(3, 6):
        step(net, went, seed)
        step(other, resumed, seed)
    for weight, again in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, again)


def test_vectors_are_not_decayed():
    decays = {
        tuple(p.shape): group["weight_decay"]
        for group in optim.build(nn.Linear(4, 3), config(weight_decay=0.1)).param_groups
        for p in group["params"]
    }
    assert decays == {(3, 4): 0.1, (3,): 0.0}
