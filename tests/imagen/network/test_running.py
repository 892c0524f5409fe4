"""Ways of running a network: recomputing, compiled, in half precision."""

import dataclasses

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from imagen.errors import ConfigError
from imagen.network.conditions import Conditions

close = torch.testing.assert_close


def trained(net, x, given):
    """Return the output and the gradients."""
    net.zero_grad()
    torch.manual_seed(1)
    out = net(x, given)
    out.float().square().mean().backward()
    return out.detach(), [p.grad.clone() for p in net.parameters()]


def saved_bytes(net, x, given):
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(x, given)
    del out
    return sum(kept.values())


def test_recomputed_levels_give_the_same_gradients_with_less_memory(config, inputs, awake):
    net = awake(dataclasses.replace(config, dropout=0.3)).train()
    x, given = inputs(config)
    (out, grads), full = trained(net, x, given), saved_bytes(net, x, given)
    net.checkpoint_levels([0])
    one = saved_bytes(net, x, given)
    net.checkpoint_levels([0, 1])
    again, regrads = trained(net, x, given)
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, regrads, strict=True))
    assert saved_bytes(net, x, given) < one < full
    net.checkpoint_levels([])
    assert saved_bytes(net, x, given) == full


def test_a_level_that_is_not_there_cannot_be_recomputed(configs, awake):
    with pytest.raises(ConfigError, match="level 2 is none of 0 … 1"):
        awake(configs["base"]).checkpoint_levels([0, 2])


GRAD_WARNING = "ignore:The .grad attribute of a Tensor:UserWarning"  # torch's own


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings(GRAD_WARNING)
def test_compiled_blocks_are_whole_graphs_in_training_and_sampling(configs, inputs, awake):
    config = dataclasses.replace(configs["everything"], blocks=(1, 1))
    net, (x, given) = awake(config), inputs(config)
    keys, before = list(net.state_dict()), trained(net, x, given)
    net.compile_blocks(backend="eager", fullgraph=True)
    close(trained(net, x, given), before)
    net.checkpoint_levels([0])
    close(trained(net, x, given), before)
    with torch.no_grad():
        close(net(x, given), before[0])
    assert list(net.state_dict()) == keys


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings(GRAD_WARNING)
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_blocks_compiled_to_machine_code_compute_the_same(configs, inputs, awake):
    one = {"widths": (8,), "blocks": (1,), "self_attention": (True,), "cross_attention": (True,)}
    config = dataclasses.replace(configs["base"], **one)
    net, (x, given) = awake(config), inputs(config)
    before = trained(net, x, given)
    net.compile_blocks()
    close(trained(net, x, given), before, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_blocks_of_one_shape_are_compiled_once(configs, inputs, awake):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    config = dataclasses.replace(configs["base"], blocks=(4, 4))
    net, (x, given) = awake(config), inputs(config)
    net.compile_blocks(backend=backend)
    with torch.no_grad():
        net(x, given)
    # each of two levels down and up: the middle is like a block down, the last like a block up
    assert len(graphs) == 2 * 2 + 2  # and two attentions


def test_half_precision_is_near_single_precision(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    out, grads = trained(net, x, given)
    with torch.autocast("cpu", torch.bfloat16):
        half, half_grads = trained(net, x, given)
    assert half.dtype == torch.bfloat16
    assert all(grad.isfinite().all() for grad in half_grads)
    assert (half - out).norm() < 0.03 * out.norm()
    flat, half_flat = (torch.cat([g.flatten() for g in gs]) for gs in (grads, half_grads))
    assert (half_flat - flat).norm() < 0.1 * flat.norm()


def test_a_network_in_half_precision_takes_its_conditions_in_single(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    with torch.no_grad():
        out = net(x, given)
        half = net.to(torch.bfloat16)(x.bfloat16(), given)
    assert half.dtype == torch.bfloat16
    assert (half - out).norm() < 0.05 * out.norm()


@pytest.mark.slow
def test_a_network_is_exported_as_one_graph(configs, inputs, awake):
    config = dataclasses.replace(configs["everything"], attention_depth=1, blocks=(1, 1))
    net, (x, given) = awake(config), inputs(config)
    names = [f.name for f in dataclasses.fields(given)]

    class Positional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, *values):
            return self.net(x, Conditions(**dict(zip(names, values, strict=True))))

    values = (x, *(getattr(given, name) for name in names))
    with torch.no_grad():
        program = torch.export.export(Positional(), values)
        assert torch.equal(program.module()(*values), net(x, given))
