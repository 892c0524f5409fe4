import numpy as np
import pytest
import torch

from train import ema, initial
from train.config import TrainConfig
from train.job import Inputs
from train.loop import Trainer, World


def config(**changes: object) -> TrainConfig:
    every = {"checkpoint_every": 100, "snapshot_every": 100, "log_every": 10}
    sizes = {"images": 10_000, "global_batch": 8, "microbatch": 8}
    return TrainConfig(**(sizes | every | changes))


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1, 0.2, 0.27])
def test_gamma_and_sigma_rel_are_inverse(sigma: float):
    assert ema.sigma_rel(ema.gamma(sigma)) == pytest.approx(sigma, rel=1e-9)


def test_gamma_of_the_papers_examples():
    # arXiv:2312.02696, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94
    assert ema.gamma(0.05) == pytest.approx(16.97, abs=5e-3)
    assert ema.gamma(0.10) == pytest.approx(6.94, abs=5e-3)


def test_the_average_has_a_power_function_profile():
    gamma, steps = 6.94, 400
    weights = torch.eye(steps, dtype=torch.float64)  # step k's "weights": which step it was
    average = [torch.zeros(steps, dtype=torch.float64)]
    for k in range(steps):
        ema.update(average, [weights[k]], ema.beta(gamma, 8 * (k + 1), 8))
    times = torch.arange(1, steps + 1, dtype=torch.float64)
    profile = times ** (gamma + 1) - (times - 1) ** (gamma + 1)
    assert torch.allclose(average[0], profile / profile.sum(), rtol=1e-9)


def test_the_first_step_replaces_the_initial_weights():
    average = [torch.full((3,), 99.0)]
    ema.update(average, [torch.ones(3)], ema.beta(6.94, 8, 8))
    assert torch.equal(average[0], torch.ones(3))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.2])
def test_the_average_is_the_integral_of_the_weights_times_a_power_of_the_time(sigma_rel: float):
    """The definition (arXiv:2312.02696, Eq. 1), by adding up a million slices of time.

    Weights that move once a step: what holds while images (8k, 8(k + 1)] are seen is step k's.
    """
    gamma, steps, slices = ema.gamma(sigma_rel), 50, 20_000
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(steps, 3)))
    average = [torch.zeros(3, dtype=torch.float64)]
    for k in range(steps):
        ema.update(average, [weights[k]], ema.beta(gamma, 8 * (k + 1), 8))
    times = (np.arange(steps * slices) + 0.5) / (steps * slices)
    shares = (times**gamma).reshape(steps, slices).sum(axis=1)
    expected = (shares / shares.sum()) @ weights.numpy()
    assert np.allclose(average[0].numpy(), expected, rtol=1e-6, atol=1e-9)
    spread = (np.arange(steps) * shares).sum() / shares.sum() / steps
    assert spread > 0.7  # the beginning is forgotten


class Walk:
    """Weights that a run of steps of 8 images moves, each step known."""

    def __init__(self, seed: int = 0, **changes: object) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.weight = torch.full((5,), 100.0, dtype=torch.float64)
        self.averages = ema.Averages([("w", self.weight)], config(**changes))
        self.images_seen, self.history = 0, []

    def step(self, times: int = 1) -> "Walk":
        """Take steps; each is averaged."""
        for _ in range(times):
            self.images_seen += 8
            self.weight.mul_(0.9).add_(torch.randn(5, generator=self.rng, dtype=torch.float64))
            self.history.append(self.weight.clone())
            self.averages.update(self.images_seen)
        return self

    def expected(self, sigma_rel: float) -> torch.Tensor:
        """Return the power-function average in closed form."""
        times = torch.arange(len(self.history) + 1, dtype=torch.float64)
        return (
            times.pow(ema.gamma(sigma_rel) + 1).diff()
            @ torch.stack(self.history)
            / (times[-1] ** (ema.gamma(sigma_rel) + 1))
        )


def test_the_main_average_and_each_profile_have_their_own_width():
    walk = Walk(ema_sigma_rel=0.2, ema_profiles=(0.05, 0.1)).step(30)
    profiles = walk.averages.profiles()
    assert list(profiles) == ["ema@0.05", "ema@0.1"]
    assert torch.allclose(walk.averages.main()["w"], walk.expected(0.2), rtol=1e-9)
    for width in (0.05, 0.1):
        assert torch.allclose(profiles[f"ema@{width}"]["w"], walk.expected(width), rtol=1e-9)
    assert not torch.allclose(walk.expected(0.05), walk.expected(0.1), rtol=1e-3)


def test_averages_that_went_through_a_file_go_on_bit_by_bit():
    through, resumed = (Walk(ema_profiles=(0.05, 0.1)).step(7) for _ in range(2))
    other = ema.Averages([("w", resumed.weight)], config(ema_profiles=(0.05, 0.1)))
    stored = {name: t.clone() for name, t in resumed.averages.tensors().items()}
    assert sorted(stored) == [
        "ema/w", "ema@0.05/w", "ema@0.1/w", "since/ema@0.05", "since/ema@0.1",
    ]  # fmt: skip
    for name, tensor in other.tensors().items():
        tensor.copy_(stored[name])
    other.restored(56, set(stored))
    resumed.averages = other
    through.step(5)
    resumed.step(5)
    for name, tensor in through.averages.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])


def test_a_profile_that_was_added_is_one_only_when_its_start_has_no_part_in_it():
    walk = Walk().step(50)
    stored = {name: t.clone() for name, t in walk.averages.tensors().items()}
    walk.averages = ema.Averages([("w", walk.weight)], config(ema_profiles=(0.05, 0.2)))
    walk.averages.tensors()["ema/w"].copy_(stored["ema/w"])
    walk.averages.restored(walk.images_seen, set(stored))
    assert walk.averages.profiles() == {}
    assert torch.equal(walk.averages.tensors()["ema@0.05/w"], walk.weight)
    walk.step(24)  # 50 / 74 to the power of 18 is below a thousandth, to that of 3.3 it is not
    assert list(walk.averages.profiles()) == ["ema@0.05"]
    assert torch.allclose(walk.averages.profiles()["ema@0.05"]["w"], walk.expected(0.05), atol=0.02)
    later = ema.Averages([("w", walk.weight)], config(ema_profiles=(0.05, 0.2)))
    for name, tensor in walk.averages.tensors().items():
        later.tensors()[name].copy_(tensor)
    later.restored(walk.images_seen, walk.averages.tensors().keys())
    assert list(later.profiles()) == ["ema@0.05"]  # the start was in the file


def test_the_exponential_average_halves_what_is_older_by_its_halflife():
    walk = Walk(ema_halflife_images=80).step(300)
    before = walk.averages.main()["w"].clone()
    share = 1.0
    for _ in range(10):  # 80 images
        walk.weight.zero_()
        walk.images_seen += 8
        walk.averages.update(walk.images_seen)
        share *= ema.halflife_beta(80, walk.images_seen, 8)
    assert share == pytest.approx(0.5, rel=1e-12)
    assert torch.allclose(walk.averages.main()["w"], 0.5 * before, rtol=1e-12)


def test_early_in_a_run_the_halflife_is_a_share_of_the_images_so_far():
    walk = Walk(ema_halflife_images=1_000_000).step()
    assert torch.equal(walk.averages.main()["w"], walk.history[0])  # not the initial 100
    assert ema.halflife_beta(1_000_000, 1608, 8) == pytest.approx(0.5 ** (8 / 80))
    assert ema.halflife_beta(80, 1608, 8) == ema.halflife_beta(80, 160_008, 8)


def test_float32_averages_are_what_they_were_before_profiles_existed():
    """Bit by bit: each step one multi-tensor lerp."""
    torch.manual_seed(0)
    weights = [torch.randn(7, 3), torch.randn(4)]
    averages = ema.Averages([("a", weights[0]), ("b", weights[1])], config())
    plain = [w.clone() for w in weights]
    gamma = ema.gamma(0.1)
    for step in range(1, 6):
        for weight in weights:
            weight.add_(torch.randn(weight.shape))
        averages.update(8 * step)
        torch._foreach_lerp_(plain, weights, 1 - (1 - 8 / (8 * step)) ** (gamma + 1))
    assert all(map(torch.equal, averages.main().values(), plain))


def test_training_keeps_the_weighted_sum_of_the_weights_of_all_its_steps(helpers, project: str):
    """Of a real run: the closed form from the weights after each step, in float64."""
    config = helpers.make_config(project, ema_profiles=(0.05, 0.15))
    net = initial.random(config.members["sr1"].network, config.seed)
    world = World(0, 1, torch.device("cpu"))
    one = Trainer(net, config.members["sr1"], config.of("sr1"), world, config.seed)
    data, history = Inputs.open(config, "sr1").samples(config, "sr1"), []
    for step in range(6):
        one.step([data.__getitems__(range(8 * step, 8 * step + 8))])
        history.append({n: w.detach().double().clone() for n, w in net.named_parameters()})
    assert one.averages is not None
    kinds = {0.1: one.averages.main()} | {
        width: one.averages.profiles()[f"ema@{width}"] for width in (0.05, 0.15)
    }
    times = torch.arange(7, dtype=torch.float64)
    for width, averages in kinds.items():
        shares = times.pow(ema.gamma(width) + 1).diff() / 6 ** (ema.gamma(width) + 1)
        for name, average in averages.items():
            expected = sum(share * step[name] for share, step in zip(shares, history, strict=True))
            assert torch.allclose(average.double(), expected, rtol=1e-5, atol=1e-7)
            assert not torch.allclose(average.double(), history[-1][name], rtol=1e-6, atol=1e-8)
