"""How ranks share a member's training: each holds all of it (DDP), or a part of it (FSDP2).

Either way the gradient is the mean over the ranks of what each has summed up, in float32, made
once a step: in the last backward pass.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from imagen.network.levels import DownLevel, UpLevel

if TYPE_CHECKING:
    from train.loop import World


class Alone:
    """A network that one rank trains."""

    cut = False
    """Whether a rank holds shards of tensors (DTensor), not whole ones."""

    def __init__(self, net: nn.Module) -> None:
        self.model = net
        """What is called, in place of the network."""

    @contextlib.contextmanager
    def backward_pass(self, last: bool) -> Iterator[None]:
        """Run a forward and backward pass; the `last` one of a step makes the gradient."""
        del last
        yield


class Replicated(Alone):
    """A network of which each rank holds all."""

    def __init__(self, net: nn.Module, world: "World") -> None:
        ids = [world.device.index] if world.device.type == "cuda" else None
        self.model = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def backward_pass(self, last: bool) -> Iterator[None]:
        """Run a pass; ranks may differ in how many they make."""
        with contextlib.nullcontext() if last else self.model.no_sync():
            yield


class Cut(Alone):
    """A network whose weights are cut among the ranks, level by level of the U-Net.

    A level is put together when it is needed, and left again after its pass. Ranks meet in every
    pass, so all make the same number (see `train.data.shares`).
    """

    cut = True

    def __init__(self, net: nn.Module, world: "World") -> None:
        mesh = init_device_mesh(world.device.type, (world.size,))
        for weight in net.parameters():  # FSDP2 takes no channels-last weights
            weight.data = weight.data.contiguous()
        for module in net.modules():
            if isinstance(module, DownLevel | UpLevel):
                fully_shard(module, mesh=mesh)
        self.model = fully_shard(net, mesh=mesh)

    @contextlib.contextmanager
    def backward_pass(self, last: bool) -> Iterator[None]:
        """Run a pass, all ranks together."""
        assert isinstance(self.model, FSDPModule), "the network was cut"
        self.model.set_requires_gradient_sync(last)
        yield


def share(net: nn.Module, world: "World", kind: Literal["ddp", "fsdp"]) -> Alone:
    """Return a network as these ranks train it; "fsdp" changes its weights to shards in place."""
    if world.size == 1:
        return Alone(net)
    return Cut(net, world) if kind == "fsdp" else Replicated(net, world)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; of shards, all ranks call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
