"""What a rank's training is fed with: its microbatches of each step, loaded ahead."""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence

from torch.utils.data import Dataset

from imagen.errors import ImagenError
from train import data
from train.config import TrainConfig, TrainStageConfig
from train.data import LOADER_AHEAD, Microbatch, Samples
from train.job import Inputs, Job
from train.loop import World
from train.prefetch import Prefetch, is_remote


@contextlib.contextmanager
def feed(
    job: Job, inputs: Inputs, world: World, images_seen: int
) -> Iterator[Iterator[list[Microbatch]]]:
    """Yield an iterator over this rank's microbatches of each step, from `images_seen` on.

    The processes that load, and the thread that fetches remote shards ahead, end with the block.
    """
    train = job.train
    parts = data.shares(train.global_batch, train.microbatch, world.rank, world.size)
    todo = range(images_seen // train.global_batch, train.steps)
    with _prefetch(train, inputs, parts, todo) as prefetch:
        steps = _steps(job, inputs, parts, todo, world.device.type == "cuda", prefetch)
        try:
            yield steps
        finally:
            steps.close()  # lets go of the loader, which ends its processes


def _prefetch(
    train: TrainConfig, inputs: Inputs, parts: list[range], todo: range
) -> contextlib.AbstractContextManager[Prefetch | None]:
    """Return what downloads ahead of a rank; nothing where all data is local."""
    if not is_remote(inputs) or not todo:
        return contextlib.nullcontext()
    share = range(parts[0].start, parts[-1].stop)
    ahead = train.loader_workers * LOADER_AHEAD  # microbatches
    return Prefetch(inputs, share, todo, margin=2 + -(-ahead // len(parts)))


def _steps(
    job: Job,
    inputs: Inputs,
    parts: list[range],
    todo: range,
    pin: bool,
    prefetch: Prefetch | None,
) -> Generator[list[Microbatch], None, None]:
    train = job.train
    positions = data.Positions(parts, train.global_batch, todo.start, todo.stop)
    samples = _Told(inputs.samples(job.config, job.member), _open_at_once(inputs, parts, todo))
    batches = iter(data.loader(samples, positions, train.loader_workers, pin))
    for step in todo:
        if prefetch is not None:
            prefetch.reached(step)
        yield [_checked(next(batches)) for _ in parts]


class _Told(Dataset):
    """Samples whose errors are values: one that a process raises would lose its hint on its way."""

    def __init__(self, samples: Samples, open_at_once: int) -> None:
        self.samples, self.open_at_once = samples, open_at_once

    def __getitems__(self, positions: Sequence[int]) -> Microbatch | ImagenError:
        for source in (self.samples.prepared, self.samples.embeddings):
            if source is not None:
                source.keep_open(self.open_at_once)  # what was evicted holds room until now
        try:
            return self.samples.__getitems__(positions)
        except ImagenError as err:
            return err


def _checked(part: Microbatch | ImagenError) -> Microbatch:
    if isinstance(part, ImagenError):
        raise part
    return part


def _open_at_once(inputs: Inputs, parts: list[range], todo: range) -> int:
    """Return the number of shards that a rank's windows are of, and those after them."""
    order = inputs.order
    steps = 2 + -(-order.window * order.lanes // order.global_batch)
    steps = min(steps, len(todo))
    return len(order.shards_needed(todo.start, parts[0].start, parts[-1].stop, steps))


def rate(config: TrainStageConfig, member: str, seconds: float = 4.0) -> float:
    """Return the images a second of the loader alone, in this process, over some seconds."""
    train = config.of(member)
    samples = Inputs.open(config, member).samples(config, member)
    parts = data.shares(train.global_batch, train.microbatch, 0, 1)
    positions = data.Positions(parts, train.global_batch, 0, train.steps)
    samples.__getitems__(next(iter(positions)))  # opens what is read
    images, began = 0, time.perf_counter()
    for part in positions:
        images += len(samples.__getitems__(part).weight)
        if time.perf_counter() - began > seconds:
            break
    return images / (time.perf_counter() - began)
