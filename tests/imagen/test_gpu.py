"""The library on a GPU, against the CPU: `pytest -m gpu tests/imagen/test_gpu.py`."""

import dataclasses

import pytest
import torch

from imagen.diffusion.config import KNOBS
from imagen.editing import Canvas
from imagen.member import DiffusionConfig, Given, SamplingConfig, loss
from imagen.sampling import draw, noised_lowres

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

NAMES = ["BASE", "SR", "ALL", "BARE"]
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def single_precision():
    """Convolutions in float32 proper, so that both devices compute the same."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def gradients(net, member, batch):
    """Return losses (b,) and the gradient of their sum: all parameters, one vector, on the CPU."""
    net.zero_grad()
    losses = loss(net, member, batch)
    losses.sum().backward()
    return losses.detach().cpu(), torch.cat([p.grad.flatten() for p in net.parameters()]).cpu()


def near(found, expected, share):
    """Whether two vectors differ by less than a share of their length."""
    return bool((found - expected).norm() < share * expected.norm())


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_the_cpu(toy, name):
    member = getattr(toy, name)
    net, batch = toy.awake(member), toy.train_batch(member)
    losses, grads = gradients(net, member, batch)
    found, found_grads = gradients(net.to(GPU), member, toy.moved(batch, GPU))
    torch.testing.assert_close(found, losses, atol=1e-4, rtol=1e-3)
    assert near(found_grads, grads, 1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "edm", "rectified"])
@pytest.mark.parametrize("prediction", ["v", "eps", "x0", "edm", "flow"])
def test_losses_of_each_prediction_and_schedule_are_those_of_the_cpu(toy, prediction, schedule):
    diffusion = DiffusionConfig(
        prediction=prediction, schedule=schedule, zero_terminal_snr=prediction != "eps"
    )
    member = dataclasses.replace(toy.BASE, diffusion=diffusion)
    net, batch = toy.awake(member), toy.train_batch(member)
    with torch.no_grad():
        losses = loss(net, member, batch)
        found = loss(net.to(GPU), member, toy.moved(batch, GPU)).cpu()
    torch.testing.assert_close(found, losses, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_trains_in_bf16_and_its_gradients_are_near_those_in_fp32(toy, name):
    member = getattr(toy, name)
    net, batch = toy.awake(member).to(GPU).train(), toy.moved(toy.train_batch(member), GPU)
    losses, grads = gradients(net, member, batch)
    with torch.autocast("cuda", torch.bfloat16):
        half, half_grads = gradients(net, member, batch)
    assert half.dtype == torch.float32
    assert half_grads.isfinite().all()
    torch.testing.assert_close(half, losses, atol=0.05, rtol=0.05)
    assert near(half_grads, grads, 0.15)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_training_step_never_waits_for_the_gpu(toy):
    net, batch = toy.awake(toy.ALL).to(GPU), toy.moved(toy.train_batch(toy.ALL), GPU)
    loss(net, toy.ALL, batch).sum().backward()  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(net, toy.ALL, batch).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def given_of(toy, member):
    batch = toy.train_batch(member, 2)
    lowres = aug = None
    if batch.lowres is not None:
        lowres, aug = noised_lowres(member, 1, batch.lowres, [1, 2])
    return Given(batch.text, None, lowres, aug, batch.label, batch.image)


def drawn(net, member, given, canvas=None):
    with torch.inference_mode():
        return draw(net, member, 1, given, [1, 2], lambda _: None, canvas).cpu()


@pytest.mark.parametrize("sampler", KNOBS)
@pytest.mark.parametrize("name", ["BASE", "ALL"])
def test_every_sampler_draws_what_it_draws_on_the_cpu(toy, name, sampler):
    """Noise is made on the host, so the same seeds are the same pictures."""
    stochasticity = None if KNOBS[sampler].name is None else 0.5
    sampling = SamplingConfig(sampler=sampler, stochasticity=stochasticity, steps=4)
    member = dataclasses.replace(getattr(toy, name), sampling=sampling)
    net, given = toy.awake(member), given_of(toy, member)
    expected = drawn(net, member, given)
    found = drawn(net.to(GPU), member, toy.moved(given, GPU))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_editing_paints_what_it_paints_on_the_cpu(toy):
    member = dataclasses.replace(toy.BASE, sampling=SamplingConfig(steps=4))
    net, given = toy.awake(member), given_of(toy, member)
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(2, -1, -1, -1)
    mask = (image > 0).clone()
    expected = drawn(net, member, given, Canvas(image, mask, 0.7, 2))
    on_gpu = Canvas(image.to(GPU), mask.to(GPU), 0.7, 2)
    found = drawn(net.to(GPU), member, toy.moved(given, GPU), on_gpu)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert torch.equal(found[~mask], image[~mask])


def wide(toy):
    """Return a member whose activations are far larger than its weights, and a batch of it."""
    network = dataclasses.replace(toy.NETWORK, widths=(32, 64), blocks=(2, 2))
    member = dataclasses.replace(toy.BASE, size=128, network=network)
    return member, toy.moved(toy.train_batch(member, 8), GPU)


def test_recomputing_levels_saves_memory_and_keeps_the_gradients(toy):
    member, batch = wide(toy)
    net = toy.awake(member).to(GPU)
    gradients(net, member, batch)  # gradients and workspaces are there from now on
    used, found = [], []
    for levels in ([], [1], [0, 1]):
        net.checkpoint_levels(levels)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found.append(gradients(net, member, batch)[1])
        used.append(torch.cuda.max_memory_allocated() - before)
    assert used[2] < used[1] < used[0]
    assert used[2] < 0.7 * used[0]
    assert all(near(grads, found[0], 1e-3) for grads in found[1:])


@pytest.mark.filterwarnings("ignore")  # the compiler's own, which differ between releases
def test_compiled_blocks_compute_the_same(toy):
    member = toy.ALL
    net, batch = toy.awake(member).to(GPU), toy.moved(toy.train_batch(member), GPU)
    losses, grads = gradients(net, member, batch)
    keys = list(net.state_dict())
    torch._dynamo.reset()
    net.compile_blocks()
    try:
        found, found_grads = gradients(net, member, batch)
    finally:
        torch._dynamo.reset()
    assert list(net.state_dict()) == keys
    torch.testing.assert_close(found, losses, atol=1e-3, rtol=1e-3)
    assert near(found_grads, grads, 1e-2)
