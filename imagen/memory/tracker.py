"""Count the storage that is alive while code runs on fake tensors.

Every tensor that an operation makes passes the dispatcher, whoever keeps it afterwards: a Python
name, autograd or a cache. So nothing has to be known about what an operation saves.
"""

import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class Block:
    """One storage and the operation that made it."""

    num_bytes: int
    """Size."""
    module: str
    """Path of the module whose forward made it; empty outside of all, as in a backward pass."""
    operation: str
    """Name of the operation."""
    shape: tuple[int, ...]
    """Shape of the first tensor that it held."""
    dtype: torch.dtype
    """Type of that tensor."""
    is_cast: bool
    """Whether it is a copy, in another type, of something known, such as a weight."""

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        type_name = str(self.dtype).removeprefix("torch.")
        return f"{self.module or 'outside'} ({self.operation}): {shape} {type_name}"


@dataclass(frozen=True, slots=True)
class Trace:
    """The life of every storage of a run."""

    blocks: tuple[Block, ...]
    """In order of birth."""
    events: tuple[int, ...]
    """i: block i is born; ~i: it is freed."""

    def at_peak(self) -> list[Block]:
        """Return the blocks that were alive when most bytes were."""
        alive = peak = best = 0
        for i, event in enumerate(self.events):
            size = self.blocks[max(event, ~event)].num_bytes
            alive += size if event >= 0 else -size
            if alive > peak:
                peak, best = alive, i + 1
        numbers = set()
        for event in self.events[:best]:
            numbers.add(event) if event >= 0 else numbers.remove(~event)
        return [self.blocks[number] for number in sorted(numbers)]

    def step_on(self, after: "Trace", steps: int) -> "Trace":
        """Return the trace that lies `steps` steps from this one, where `after` lies one.

        For runs that differ in a batch size only: then each size is a linear function of it.
        """
        assert self.events == after.events, "the runs took different ways"
        pairs = zip(self.blocks, after.blocks, strict=True)
        return Trace(tuple(_step_on(one, two, steps) for one, two in pairs), self.events)


def _step_on(one: Block, two: Block, steps: int) -> Block:
    shape = tuple(a + steps * (b - a) for a, b in zip(one.shape, two.shape, strict=True))
    num_bytes = one.num_bytes + steps * (two.num_bytes - one.num_bytes)
    return replace(one, num_bytes=num_bytes, shape=shape)


class Tracker(TorchDispatchMode):
    """Record birth and death of each storage made while it is entered.

    `known`: tensors that are there before and are counted elsewhere.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._blocks: list[Block] = []
        self._events: list[int] = []
        self._known = {s._cdata: s for s in (t.untyped_storage() for t in known)}
        self._alive: dict[int, weakref.ref] = {}
        self._modules: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0  # fake tensors have no value; memory depends on none
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, func, args)
        return result

    def _see(self, made: torch.Tensor, func: Any, args: tuple) -> None:
        storage = made.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._alive:
            return
        copies = func is torch.ops.aten._to_copy.default
        is_cast = copies and args[0].untyped_storage()._cdata in self._known
        module = self._modules[-1] if self._modules else ""
        name, shape = func.overloadpacket.__name__.strip("_"), tuple(made.shape)
        number = len(self._blocks)
        self._blocks.append(Block(storage.nbytes(), module, name, shape, made.dtype, is_cast))
        self._events.append(number)

        def freed(_: weakref.ref) -> None:
            self._alive.pop(key)
            self._events.append(~number)

        self._alive[key] = weakref.ref(storage, freed)

    @property
    def trace(self) -> Trace:
        """What happened until now."""
        runs = itertools.groupby(self._events, key=lambda event: event >= 0)
        # a hash table's storages, such as autocast's, are freed in an order that says nothing
        events = [event for born, run in runs for event in (run if born else sorted(run))]
        return Trace(tuple(self._blocks), tuple(events))

    @contextmanager
    def naming(self, net: nn.Module) -> Iterator[None]:
        """Name what is made inside by the module of `net` whose forward runs."""

        def enter(name: str) -> Any:
            return lambda *_: self._modules.append(name)

        def leave(*_: Any) -> None:
            self._modules.pop()

        hooks = []
        for name, module in net.named_modules():
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
