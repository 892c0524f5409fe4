"""What a step costs: images a second, waiting for data, use of the device, memory."""

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from train import flops

if TYPE_CHECKING:
    from train.loop import Trainer

GB = 10**9


@dataclass(frozen=True, slots=True)
class Work:
    """What an image costs, and what all devices could do."""

    flops_per_image: int
    """Operations of a training step, for one image."""
    peak: float
    """Operations a second of all workers' devices together."""

    @classmethod
    def of(cls, trainer: "Trainer") -> Self:
        """Count the work of a member's training; other workers are taken to be like this one."""
        config, world = trainer.config, trainer.world
        each = flops.training_flops(trainer.member, config.crop_px)
        return cls(each, flops.peak(world.device, config.precision) * world.size)


class Meter:
    """Counts since the last look, on one rank."""

    def __init__(
        self, images_seen: int, work: Work | None = None, device: torch.device | None = None
    ) -> None:
        """Begin at `images_seen`; without `work`, look() tells no MFU."""
        self.work, self.device = work, torch.device("cpu") if device is None else device
        self._restart(images_seen)

    @classmethod
    def of(cls, trainer: "Trainer") -> Self:
        """Return the meter of a trainer; rank 0's, which is logged, knows the work of an image."""
        work = Work.of(trainer) if trainer.world.rank == 0 else None
        return cls(trainer.images_seen, work, trainer.world.device)

    def _restart(self, images_seen: int) -> None:
        self.images_seen, self.time, self.waited = images_seen, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began

    def look(self, images_seen: int) -> dict[str, float]:
        """Return what a line of the log says of speed and memory, since the last look."""
        passed = max(time.perf_counter() - self.time, 1e-9)
        rate = (images_seen - self.images_seen) / passed
        fields = {"images_per_s": round(rate, 1), "data_wait": round(self.waited / passed, 4)}
        if self.work is not None:
            fields["mfu"] = round(rate * self.work.flops_per_image / self.work.peak, 4)
        fields["memory_gb"] = round(peak_memory(self.device) / GB, 3)
        self._restart(images_seen)
        return fields


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors took on a GPU, or that this process took in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells KiB
