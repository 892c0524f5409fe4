"""Sampling on Ray actors, chunk by chunk. A chunk is a pure function of cascade, items, options.

Each actor loads the cascade once and publishes its chunks itself, so that images never pass
through the driver while others sample, and a killed evaluation continues where it stopped.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy

from eval.prompts import Item
from imagen import manifest, storage
from imagen.cascade import Cascade, SampleOptions
from imagen.config import to_tree
from imagen.data.images import to_uint8

CHUNK_IMAGES = 10
"""Few enough to lose little by a kill, enough for one batch to keep a core busy."""
RESTARTS = 3
"""Times that an actor may die and be started again."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of the items, and the file that their images go to."""

    path: str
    items: tuple[Item, ...]


def chunks(
    folder: str, chosen: Sequence[Item], cascade: str, options: SampleOptions
) -> list[Chunk]:
    """Divide items into chunks. File names hold the fingerprint of all that decides the images."""
    whole = [[item.prompt, item.seed] for item in chosen]
    key = manifest.fingerprint({"cascade": cascade, "items": whole, "options": to_tree(options)})
    starts = range(0, len(chosen), CHUNK_IMAGES)
    return [
        Chunk(
            storage.join(folder, f"{key[:8]}-{start:06d}.safetensors"),
            tuple(chosen[start : start + CHUNK_IMAGES]),
        )
        for start in starts
    ]


class Sampler:
    """Holds a loaded cascade; the body of one actor."""

    def __init__(self, folder: str, options: SampleOptions) -> None:
        self.folder = folder
        self.options = options

    @cached_property
    def cascade(self) -> Cascade:
        """The cascade, loaded by the first task: an error here keeps its type, which it would lose
        while an actor is created.
        """
        import torch

        torch.set_num_threads(1)  # one actor a core; and sums in one order
        return Cascade.load(self.folder, "cuda" if torch.cuda.is_available() else "cpu")

    def ready(self) -> int:
        """Return 0 images: the actor has started."""
        return 0

    def sample(self, chunk: Chunk) -> int:
        """Sample and publish a chunk; return how many images it has."""
        prompts = [item.prompt for item in chunk.items]
        images = self.cascade.sample(prompts, [item.seed for item in chunk.items], self.options)
        arrays = {name: to_uint8(x).cpu().numpy() for name, x in images.items()}
        storage.put(chunk.path, safetensors.numpy.save(arrays))
        return len(chunk.items)


def sample_missing(
    cascade: str, work: Sequence[Chunk], options: SampleOptions, done: Callable[[int], None]
) -> None:
    """Sample chunks on an actor a GPU, or a core where there are none; Ray must be connected.

    `done(images)` is called for each finished chunk. A dead actor is started again and repeats
    its chunk, which gives the same bytes.
    """
    import ray

    waiting, left = deque(work), len(work)
    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0))
    takes: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    count = max(1, min(len(work), gpus or int(cluster.get("CPU", 1))))
    actor: Any = ray.remote(**takes, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Sampler)
    workers = [actor.remote(cascade, options) for _ in range(count)]
    # work goes to those that are there: one for which there is no core keeps nothing waiting
    running = {worker.ready.remote(): worker for worker in workers}
    while left:
        finished, _ = ray.wait(list(running), num_returns=1)
        worker = running.pop(finished[0])
        images = ray.get(finished[0])
        left -= images > 0
        done(images)
        if waiting:
            running[worker.sample.remote(waiting.popleft())] = worker


def read(work: Sequence[Chunk], members: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """Return all images of each member in the order of the items, uint8 (h, w, c)."""
    images: dict[str, list[np.ndarray]] = {name: [] for name in members}
    for chunk in work:
        arrays = safetensors.numpy.load(storage.get(chunk.path))  # keys come in any order
        for name, sampled in images.items():
            sampled.extend(arrays[name].transpose(0, 2, 3, 1))
    return images


def sweep(work: Sequence[Chunk]) -> None:
    """Delete what other cascades or options left in the folder of `work`'s chunks."""
    folder = work[0].path.rpartition("/")[0]
    mine = {storage.name(chunk.path) for chunk in work}
    for name in storage.listdir(folder):
        if name not in mine:
            storage.delete(storage.join(folder, name))
    storage.sweep_temporary(folder)


def entries(work: Sequence[Chunk]) -> dict[str, dict[str, Any]]:
    """Return the chunks as a manifest of the folder above lists them."""
    folder = storage.name(work[0].path.rpartition("/")[0])
    listed = {}
    for chunk in work:
        data = storage.get(chunk.path)
        name = storage.join(folder, storage.name(chunk.path))
        listed[name] = {"bytes": len(data), "crc32c": storage.crc32c(data)}
    return listed
