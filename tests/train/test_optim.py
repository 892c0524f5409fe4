import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from imagen.errors import ConfigError
from imagen.memory.estimate import build_optimizer, num_bytes
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


def test_a_cosine_falls_slowly_at_both_ends_and_to_the_same_0():
    linear, cosine = (config(decay_images=500, decay=shape) for shape in ("linear", "cosine"))
    pairs = [
        [optim.learning_rate(c, seen) for c in (linear, cosine)] for seen in range(0, 1000, 10)
    ]
    assert pairs[:50] == [[0.5, 0.5]] * 50
    assert pairs[75] == [0.25, pytest.approx(0.25)]
    assert all(curved > straight for straight, curved in pairs[51:75])
    assert all(curved < straight for straight, curved in pairs[76:])
    assert optim.learning_rate(cosine, 1000) == 0
    # half a cosine: three quarters down, sin^2(pi / 8) of it is left
    assert optim.learning_rate(cosine, 875) == pytest.approx(0.5 * 0.1464466, rel=1e-6)


def network() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 3))
    return net.to(memory_format=torch.channels_last)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    net(torch.randn(5, 4, 3, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


KINDS = pytest.mark.parametrize("kind", ["adamw", "adafactor"])


@KINDS
def test_state_that_went_through_a_file_continues_bit_by_bit(kind: str):
    torch.manual_seed(0)
    net, other = network(), network()
    went, resumed = (optim.build(n, config(optimizer=kind)) for n in (net, other))
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


@KINDS
def test_state_that_is_made_before_the_first_step_is_what_the_first_step_makes(kind: str):
    torch.manual_seed(0)
    lazy, early = network(), network()
    early.load_state_dict(lazy.state_dict())
    one, other = (optim.build(n, config(optimizer=kind)) for n in (lazy, early))
    assert not optim.state_tensors(one, lazy)
    optim.prepare_state(other)
    before = optim.state_tensors(other, early)
    assert not any(t.any() for t in before.values())
    for seed in range(3):
        step(lazy, one, seed)
        step(early, other, seed)
    made = optim.state_tensors(one, lazy)
    assert list(made) == list(before)
    for name, tensor in made.items():
        assert before[name].stride() == tensor.stride()
        assert torch.equal(before[name], tensor)  # live: these moved with the optimizer
    for weight, again in zip(lazy.parameters(), early.parameters(), strict=True):
        assert torch.equal(weight, again)


@KINDS
def test_the_estimate_of_memory_counts_the_state_that_training_keeps(kind: str):
    net = network()
    mine, estimated = optim.build(net, config(optimizer=kind)), None
    optim.prepare_state(mine)
    kept = num_bytes(list(optim.state_tensors(mine, net).values()))
    estimated = build_optimizer(kind, list(net.parameters()))
    step(net, estimated, 0)
    assert kept == num_bytes([t for state in estimated.state.values() for t in state.values()])


@KINDS
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e3])
def test_the_first_steps_are_as_large_as_lr_whatever_the_size_of_the_gradient(
    kind: str, scale: float
):
    torch.manual_seed(0)
    net = nn.Linear(40, 30, bias=False)
    optimizer = optim.build(net, config(optimizer=kind, lr=1e-3, weight_decay=0.0))
    for seed in range(5):
        before = net.weight.detach().clone()
        torch.manual_seed(seed)
        net.weight.grad = scale * torch.randn(30, 40)
        optimizer.step()
        moved = (net.weight.detach() - before).square().mean().sqrt().item()
        assert 0.3e-3 < moved < 1.1e-3


def test_adafactor_leaves_a_weight_alone_whose_gradient_is_0():
    net = network()
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = optim.build(net, config(optimizer="adafactor", weight_decay=0.0))
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in net.named_parameters())


def test_adafactor_averages_small_gradients_too():
    """torch's own least gradient, 1e-7 of the mean square, would make each step one of full size:
    a gradient that is a hundred times smaller than those before moves a weight as far."""
    net = nn.Linear(40, 30, bias=False)
    optimizer = optim.build(net, config(optimizer="adafactor", lr=1e-3, weight_decay=0.0))
    torch.manual_seed(0)
    for size in (1e-5, 1e-5, 1e-5, 1e-7):
        before = net.weight.detach().clone()
        net.weight.grad = size * torch.randn(30, 40)
        optimizer.step()
    assert (net.weight.detach() - before).square().mean().sqrt().item() < 0.1e-3


def test_vectors_are_not_decayed():
    decays = {
        tuple(p.shape): group["weight_decay"]
        for group in optim.build(nn.Linear(4, 3), config(weight_decay=0.1)).param_groups
        for p in group["params"]
    }
    assert decays == {(3, 4): 0.1, (3,): 0.0}


def rank(number: int, store: str, answers: multiprocessing.Queue) -> None:
    """Take three steps with weights that are cut among two processes; tell how they differ."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    torch.manual_seed(0)
    whole, cut = network(), network()
    cut.load_state_dict(whole.state_dict())
    fully_shard(cut.to(memory_format=torch.contiguous_format), mesh=init_device_mesh("cpu", (2,)))
    one, other = (optim.build(n, config(lr=1e-2)) for n in (whole, cut))
    optim.prepare_state(other)
    before = optim.state_tensors(other, cut)
    for seed in range(3):
        torch.manual_seed(seed)
        images = torch.randn(4, 4, 3, 3)
        whole(images).square().mean().backward()
        cut(images[2 * number : 2 * number + 2]).square().mean().backward()
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
    after = optim.state_tensors(other, cut)
    pairs = zip(whole.parameters(), cut.parameters(), strict=True)
    apart = max((w - c.full_tensor()).abs().max().item() for w, c in pairs)
    try:
        refused = str(optim.build(cut, config(optimizer="adafactor")))
    except ConfigError as err:
        refused = err.message
    answers.put((apart, all(after[name] is before[name] for name in after), refused))
    dist.destroy_process_group()


@pytest.mark.slow
def test_weights_that_are_cut_among_processes_are_stepped_alike_or_refused(tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    ranks = [spawn.Process(target=rank, args=(i, f"{tmp_path}/s", answers)) for i in range(2)]
    for process in ranks:
        process.start()
    for apart, live, refused in [answers.get(timeout=120) for _ in ranks]:
        assert apart < 1e-7
        assert live
        assert refused == optim.NO_SHARDS
    for process in ranks:
        process.join()
