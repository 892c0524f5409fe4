"""The training loop of one rank. Knows torch.distributed, not Ray."""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imagen.data.order import hash_key
from imagen.errors import ImagenError
from imagen.member import MemberConfig, check_batch, loss
from train import ema, optim
from train.config import TrainConfig
from train.data import Microbatch, to_device

MAX_SKIPPED_IN_A_ROW = 50


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
    bad: list[tuple[str, str]] = field(default_factory=list)

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
    """Weights, their EMA and optimizer, and the step that moves them."""

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
        self.optimizer = optim.build(net, config)
        self.weights = list(net.parameters())
        # only rank 0 writes the EMA, so only rank 0 keeps it
        self.ema = [w.detach().clone() for w in self.weights] if world.rank == 0 else []
        self.gamma = ema.gamma(config.ema_sigma_rel)
        self.images_seen = 0
        self.counts = Counts()
        self.skipped_in_a_row = 0
        self.last: dict[str, float] = {}
        self.interval = Interval.empty(world.device)
        self.model = self._wrap()

    def _wrap(self) -> nn.Module:
        if self.world.size == 1:
            return self.net
        ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.net, device_ids=ids, gradient_as_bucket_view=True)

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
        world size: DDP averages over ranks, so each rank's sum is multiplied by the world size.
        Every rank synchronises once, in its last backward pass.
        """
        share = self.world.size / self.config.global_batch
        for i, part in enumerate(parts):
            with self._no_sync() if i + 1 < len(parts) else contextlib.nullcontext():
                self._seed_dropout(i)
                batch = to_device(part, self.world.device)
                weight = part.weight.to(self.world.device)
                with self._precision():
                    losses = loss(self.model, self.member, batch) * weight
                (losses.sum() * share).backward()
            self.interval.add(losses.detach(), weight)
            self.interval.bad += part.bad

    def _no_sync(self) -> contextlib.AbstractContextManager:
        model = self.model
        ddp = isinstance(model, DistributedDataParallel)
        return model.no_sync() if ddp else contextlib.nullcontext()

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
        norm = nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm, foreach=True)
        self.last = {"grad_norm": float(norm), "lr": lr}
        self.images_seen += self.config.global_batch
        if torch.isfinite(norm):
            self.optimizer.step()
            self.skipped_in_a_row = 0
            if self.ema:
                beta = ema.beta(self.gamma, self.images_seen, self.config.global_batch)
                ema.update(self.ema, self.weights, beta)
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

    def look(self) -> tuple[float, list[tuple[str, str]]]:
        """Return the mean loss and the bad samples since the last look, over all ranks.

        Losses that are not finite are left out; their steps are counted as skipped. NaN when there
        was no other. All ranks call this at the same steps.
        """
        mine = (float(self.interval.loss), int(self.interval.good), self.interval.bad)
        self.interval = Interval.empty(self.world.device)
        losses, good, bad = zip(*self.world.gather(mine), strict=True)
        self.counts.bad_samples += sum(map(len, bad))
        mean = sum(losses) / sum(good) if sum(good) else float("nan")
        return mean, [sample for samples in bad for sample in samples]

    def ema_state(self) -> dict[str, torch.Tensor]:
        """Return the network's state dict with averaged weights."""
        names = [name for name, _ in self.net.named_parameters()]
        return {**self.net.state_dict(), **dict(zip(names, self.ema, strict=True))}

    def state(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the run, for a checkpoint."""
        tensors = {f"net/{k}": v for k, v in self.net.state_dict().items()}
        names = [name for name, _ in self.net.named_parameters()]
        tensors |= {f"ema/{k}": v for k, v in zip(names, self.ema, strict=True)}
        return tensors | optim.state_tensors(self.optimizer, self.net)

    def restore(
        self, images_seen: int, tensors: dict[str, torch.Tensor], counts: dict[str, int]
    ) -> None:
        """Put back what `state` returned."""
        net = {k.removeprefix("net/"): v for k, v in tensors.items() if k.startswith("net/")}
        self.net.load_state_dict(net)
        if self.ema:
            for (name, _), average in zip(self.net.named_parameters(), self.ema, strict=True):
                average.copy_(tensors[f"ema/{name}"])
        optim.load_state_tensors(self.optimizer, self.net, tensors)
        self.images_seen = images_seen
        self.counts = Counts(**counts)


def crossed(every: int, before: int, after: int, total: int) -> bool:
    """Tell whether an interval ended between two counts of images, or the run did."""
    return after // every > before // every or after >= total


class Stopwatch:
    """Images per second since the last look."""

    def __init__(self, images_seen: int) -> None:
        self.images_seen, self.time = images_seen, time.perf_counter()

    def rate(self, images_seen: int) -> float:
        """Return images per second since the last call."""
        now = time.perf_counter()
        rate = (images_seen - self.images_seen) / max(now - self.time, 1e-9)
        self.images_seen, self.time = images_seen, now
        return rate
