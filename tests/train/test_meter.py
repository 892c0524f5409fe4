import torch

from imagen.memory.fakes import build_without_values
from train import flops
from train.config import TrainConfig
from train.loop import Trainer, World
from train.meter import Meter, Work

CPU = torch.device("cpu")


def test_a_meter_tells_images_waiting_and_memory_since_the_last_look():
    meter = Meter(100, Work(flops_per_image=10, peak=1e12), CPU)
    meter.time -= 10.0  # as if the interval had begun then
    meter.waited = 2.0
    with meter.waiting():
        pass
    found = meter.look(600)
    assert 45 < found["images_per_s"] <= 50
    assert 0.15 < found["data_wait"] <= 0.21
    assert found["memory_gb"] > 0.01
    assert meter.look(600)["images_per_s"] == 0


def test_mfu_is_work_over_what_the_devices_could_do():
    meter = Meter(0, Work(flops_per_image=3 * 10**9, peak=10 * 3e9), CPU)
    meter.time -= 10.0
    assert 0.45 < meter.look(50)["mfu"] <= 0.5  # 5 images a second of 10


def test_waiting_counts_also_when_the_data_ends():
    meter = Meter(0)
    before = meter.waited
    try:
        with meter.waiting():
            next(iter([]))
    except StopIteration:
        pass
    assert meter.waited > before
    assert "mfu" not in meter.look(8)  # nobody said what an image costs


def test_only_the_rank_that_writes_the_log_counts_the_work(helpers):
    config = helpers.make_config("x")
    train = TrainConfig(**helpers.TREE["train"]["base"])
    member = config.members["base"]
    nets = [Trainer(build(member), member, train, World(0, 1, CPU), 3)]
    work = Meter.of(nets[0]).work
    assert work is not None
    assert work.flops_per_image == flops.training_flops(member)
    assert work.peak > 1e8


def build(member):
    from imagen.network.unet import build as build_network

    return build_network(member.network)


def test_a_step_costs_three_times_its_forward_pass(helpers):
    """And as much for each image of a batch; two operations a multiply-add."""
    linear = torch.nn.Linear(16, 32, bias=False, device="meta")
    with flops.FlopCounterMode(display=False) as counter:
        x = torch.ones(4, 16, device="meta", requires_grad=True)
        linear(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 16 * 32
    members = helpers.make_config("x").members
    before = torch.random.get_rng_state()
    base, sr1 = (flops.training_flops(member) for member in members.values())
    assert (torch.random.get_rng_state() == before).all()  # dropout's draws are the training's
    convolutions = sum(
        w.numel() for w in build_without_values(members["sr1"].network).parameters() if w.ndim == 4
    )
    assert base > 0
    assert sr1 > 3 * 2 * convolutions * 8 * 8  # most work at 8 px or more
    assert flops.training_flops(members["sr1"], 8) < sr1 / 3


def test_cards_are_known_by_name():
    assert flops.of_card("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert flops.of_card("NVIDIA H100 PCIe", "bf16") == 756e12
    assert flops.of_card("NVIDIA A100-SXM4-80GB", "tf32") == 156e12
    assert flops.of_card("NVIDIA A10G", "bf16") == 70e12
    assert flops.of_card("NVIDIA L40S", "bf16") == 362e12
    assert flops.of_card("NVIDIA GeForce RTX 4090", "fp32") == 82.6e12
    assert flops.of_card("Radeon", "bf16") is None
