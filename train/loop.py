"""The training loop of one rank. Knows torch.distributed, not Ray."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from imagen.data.order import hash_key
from imagen.data.samples import Bad
from imagen.errors import CheckpointError, ImagenError
from imagen.member import MemberConfig, check_batch, loss
from train import ema, optim, parallel
from train.config import TrainConfig
from train.data import Microbatch, to_device

MAX_SKIPPED_IN_A_ROW = 50
_NEEDED = ("net/", "ema/")
"""What no checkpoint is without."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's `value` (small, picklable) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's `value` (small, picklable), in order of rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@dataclass(slots=True)
class Interval:
    """What happened since the last look, on one rank."""

    loss: torch.Tensor
    """Sum of the losses of good samples that are finite, float64."""
    good: torch.Tensor
    """How many these are, int64."""
    bad: list[Bad] = field(default_factory=list)

    @classmethod
    def empty(cls, device: torch.device) -> "Interval":
        """Return an interval in which nothing has happened yet."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero, zero.to(torch.int64))

    def add(self, losses: torch.Tensor, weight: torch.Tensor) -> None:
        """Count weighted losses (b,) with their weights (b,), 0 for bad samples."""
        finite = losses.isfinite()
        self.loss += losses.where(finite, 0.0).sum()
        self.good += (finite & (weight > 0)).sum()


@dataclass(slots=True)
class Counts:
    """Totals of a run over all ranks; part of its checkpoints."""

    bad_samples: int = 0
    skipped_steps: int = 0


class Trainer:
    """Weights, their averages and optimizer, and the step that moves them."""

    def __init__(
        self,
        net: nn.Module,
        member: MemberConfig,
        config: TrainConfig,
        world: World,
        seed: int,
    ) -> None:
        self.net, self.member, self.config, self.world = net, member, config, world
        self.seed = seed
        self.parallel = self._share()
        self.weights = list(net.parameters())  # shards, when the network is cut
        self.optimizer = optim.build(net, config)
        optim.prepare_state(self.optimizer)
        # of whole weights only rank 0 writes averages, so only rank 0 keeps them
        named = list(net.named_parameters())
        self.averages = None
        if self.parallel.cut or world.rank == 0:
            self.averages = ema.Averages(named, config)
        self.images_seen = 0
        self.counts = Counts()
        self.skipped_in_a_row = 0
        self.last: dict[str, float] = {}
        self.interval = Interval.empty(world.device)

    def _share(self) -> parallel.Alone:
        return parallel.share(self.net, self.world, self.config.parallel)

    def check(self, part: Microbatch) -> None:
        """Raise ConfigError unless data fits the member; slow, for the first microbatch."""
        check_batch(self.member, to_device(part, self.world.device))

    def step(self, parts: list[Microbatch]) -> None:
        """Take one optimizer step on this rank's share of the next global batch."""
        self.backward(parts)
        self._update()

    def backward(self, parts: list[Microbatch]) -> None:
        """Make the gradient of this rank's share of a global batch.

        The gradient is the sum over all good samples divided by `global_batch`, whatever the
        world size: DDP and FSDP average over ranks, so each rank's sum is multiplied by the world
        size. Every rank synchronises once, in its last backward pass.
        """
        share = self.world.size / self.config.global_batch
        for i, part in enumerate(parts):
            with self.parallel.backward_pass(last=i + 1 == len(parts)):
                self._seed_dropout(i)
                batch = to_device(part, self.world.device)
                weight = part.weight.to(self.world.device)
                with self._precision():
                    losses = loss(self.parallel.model, self.member, batch) * weight
                (losses.sum() * share).backward()
            self.interval.add(losses.detach(), weight)
            self.interval.bad += part.bad

    def _precision(self) -> contextlib.AbstractContextManager:
        """Return what the loss is computed in: bfloat16 where autocast allows it, or as it is.

        Weights, and so their gradients, optimizer and EMA, stay float32.
        """
        bf16 = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16)

    def _seed_dropout(self, part: int) -> None:
        """Make dropout a function of the step, so that a resumed run repeats it.

        Its masks follow the cut into ranks and microbatches: the one draw that is not elastic.
        """
        if self.member.network.dropout:
            key = hash_key(self.seed, self.images_seen, self.world.rank, part)
            torch.manual_seed(int(key) >> 1)

    def _update(self) -> None:
        """Clip, step, average; or skip the step on every rank alike when it is not finite."""
        lr = optim.learning_rate(self.config, self.images_seen)
        optim.set_learning_rate(self.optimizer, lr)
        norm = parallel.whole(
            nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm, foreach=True)
        )
        self.last = {"grad_norm": float(norm), "lr": lr}
        self.images_seen += self.config.global_batch
        if torch.isfinite(norm):
            self.optimizer.step()
            self.skipped_in_a_row = 0
            if self.averages is not None:
                self.averages.update(self.images_seen)
        else:
            self._skip()
        self.optimizer.zero_grad(set_to_none=True)

    def _skip(self) -> None:
        self.counts.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise ImagenError(
                f"training diverged: {self.skipped_in_a_row} steps in a row had a gradient that is "
                f"not finite, up to {self.images_seen} images",
                "lower lr or clip_norm, or raise warmup_images, and start from an older checkpoint",
            )

    def look(self) -> tuple[float, list[Bad]]:
        """Return the mean loss and the bad samples since the last look, over all ranks.

        Losses that are not finite are left out; their steps are counted as skipped. NaN when there
        was no other. All ranks call this at the same steps.
        """
        sums, bad = self.so_far()
        self.interval = Interval.empty(self.world.device)
        return sums["loss"] / sums["good"] if sums["good"] else float("nan"), bad

    def so_far(self) -> tuple[dict[str, float], list[Bad]]:
        """Return sum and number of the losses since the last look, and the bad samples, once.

        The interval goes on: a start that is `restored` with the sums ends it as this one would.
        Over all ranks, which call this at the same steps.
        """
        mine = (float(self.interval.loss), int(self.interval.good), self.interval.bad)
        self.interval.bad = []
        losses, good, bad = zip(*self.world.gather(mine), strict=True)
        self.counts.bad_samples += sum(map(len, bad))
        found = [sample for samples in bad for sample in samples]
        return {"loss": sum(losses), "good": sum(good)}, found

    def state(self) -> dict[str, torch.Tensor]:
        """Return every tensor that this rank has of the run, live: `net/…`, `ema/…`, …"""
        averages = {} if self.averages is None else self.averages.tensors()
        return self._replicated() | averages

    def _replicated(self) -> dict[str, torch.Tensor]:
        """Return the tensors that all ranks have: whole, or each its shards."""
        net = {f"net/{name}": tensor for name, tensor in self.net.state_dict().items()}
        return net | optim.state_tensors(self.optimizer, self.net)

    def share_of_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that this rank writes: its shards and averages, and of what all ranks
        have whole an even part."""
        state, all_have = self.state(), self._replicated()
        if self.parallel.cut:
            all_have = {name: t for name, t in state.items() if not isinstance(t, DTensor)}
        ahead = 0 if self.parallel.cut else self._average_bytes()
        mine = even_share(all_have, self.world.rank, self.world.size, ahead)
        return {name: t for name, t in state.items() if name not in all_have or name in mine}

    def _average_bytes(self) -> int:
        kinds = 1 + len(self.config.ema_profiles)
        return kinds * sum(weight.nbytes for weight in self.weights)

    def readable(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return the state that a checkpoint with tensors of these names can be read into.

        Averages and an optimizer that the run did not have are left out. Raises CheckpointError
        when weights or their average are missing.
        """
        state, moments = self.state(), optim.state_tensors(self.optimizer, self.net)
        lacking = next((n for n in state if n.startswith(_NEEDED) and n not in names), None)
        if lacking is not None:
            raise CheckpointError(f"a checkpoint has no tensor `{lacking}`")
        kinds = {name.partition("/")[0] for name in names}
        other = not {name.partition("/")[0] for name in moments} <= kinds
        return {n: t for n, t in state.items() if n in names and not (other and n in moments)}

    def restored(self, images_seen: int, meta: Mapping[str, Any], names: Collection[str]) -> None:
        """Go on from what was read into `readable(names)`; `meta` is the checkpoint's."""
        self.images_seen, self.counts = images_seen, Counts(**meta["counts"])
        sums = meta.get("interval")  # of all ranks together
        if sums is not None and self.world.rank == 0:
            self.interval.loss += sums["loss"]
            self.interval.good += sums["good"]
        if self.averages is not None:
            self.averages.restored(images_seen, names)

    def snapshot(self, with_raw: bool) -> dict[str, dict[str, torch.Tensor]]:
        """Return copies of the whole weights on the CPU: `ema`, `raw` and profiles, on rank 0.

        Of a network that is cut, all ranks call this together.
        """
        if self.averages is None:
            return {}
        raw = self.net.state_dict()
        kinds = {ema.MAIN: raw | self.averages.main()} | ({"raw": raw} if with_raw else {})
        kinds |= {kind: raw | weights for kind, weights in self.averages.profiles().items()}
        return {kind: self._copied(weights) for kind, weights in kinds.items()}

    def _copied(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, weight in weights.items():
            full = parallel.whole(weight.detach())
            if self.world.rank == 0:
                found[name] = full.to("cpu", copy=True)
        return found


def even_share(
    tensors: Mapping[str, torch.Tensor], rank: int, size: int, ahead: int = 0
) -> set[str]:
    """Return the names that `rank` of `size` writes, so that all write about as many bytes.

    `ahead`: bytes that rank 0 writes besides.
    """
    load = [ahead] + [0] * (size - 1)
    mine = set()
    for name in sorted(tensors, key=lambda n: (-tensors[n].nbytes, n)):
        least = load.index(min(load))
        load[least] += tensors[name].nbytes
        if least == rank:
            mine.add(name)
    return mine


def crossed(every: int, before: int, after: int, total: int) -> bool:
    """Tell whether an interval ended between two counts of images, or the run did."""
    return after // every > before // every or after >= total
