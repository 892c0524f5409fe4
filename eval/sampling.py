"""Sampling on Ray actors, chunk by chunk. A chunk is a pure function of cascade, items, options.

Each actor loads the cascade once and publishes its chunks itself, so that images never pass
through the driver while others sample, and a killed evaluation continues where it stopped.
"""

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.numpy

from eval.bulk import Pack
from eval.config import EvalSection
from eval.film import Film
from eval.prompts import Item
from imagen import manifest, storage
from imagen.cascade import Cascade, SampleOptions
from imagen.config import to_tree
from imagen.data.images import to_uint8
from imagen.text.config import TextConfig
from runtime import session

if TYPE_CHECKING:
    from eval.extractors import Extractor

CHUNK_IMAGES = 10
"""Few enough to lose little by a kill, enough for one batch to keep a core busy."""
RESTARTS = 3
"""Times that an actor may die and be started again."""
AT_ONCE = 8
"""Files that are read at once."""
POOL = "imagen_eval"
"""Custom resource of nodes that are for evaluation; where there are any, no other is used."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of the items, how they are sampled, and the file that their images go to."""

    path: str
    items: tuple[Item, ...]
    options: SampleOptions

    def features(self, fingerprint: str) -> str:
        """Return the file for what the extractor with this fingerprint finds in the images."""
        return f"{self.path.removesuffix('.safetensors')}.{fingerprint}.features.safetensors"


Task = Chunk | Film | Pack


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
            options,
        )
        for start in starts
    ]


@dataclass(frozen=True, slots=True)
class Source:
    """What an actor samples from, and looks at the images with."""

    snapshots: dict[str, str]
    text: TextConfig
    section: EvalSection
    extractor: str = ""
    """Fingerprint of the extractor; empty: there is none."""

    def missing(self, work: "Sequence[Chunk | Film]") -> "list[Chunk | Film]":
        """Return the tasks of which a file is missing."""
        folders = {task.path.rpartition("/")[0] for task in work}
        there = {folder: set(storage.sizes(folder)) for folder in folders}

        def is_there(path: str) -> bool:
            return storage.name(path) in there[path.rpartition("/")[0]]

        return [task for task in work if not all(map(is_there, self.files(task)))]

    def files(self, task: Chunk | Film) -> list[str]:
        """Return the files of a finished task."""
        if not self.extractor or isinstance(task, Film):
            return [task.path]
        return [task.path, task.features(self.extractor)]


class Sampler:
    """Holds a loaded cascade; the body of one actor."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @cached_property
    def device(self) -> str:
        """Where networks run."""
        import torch

        torch.set_num_threads(1)  # one actor a core; and sums in one order
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def cascade(self) -> Cascade:
        """The cascade, loaded by the first task: an error here keeps its type, which it would lose
        while an actor is created.
        """
        return Cascade.of_snapshots(self.source.snapshots, self.source.text, self.device)

    @cached_property
    def extractor(self) -> "Extractor | None":
        """What looks at the images."""
        from eval import extractors

        return extractors.make(self.source.section, self.device)

    def ready(self) -> int:
        """Return 0 images: the actor has started."""
        return 0

    def sample(self, task: Task) -> int:
        """Sample and publish; return how many images of the work are done by it."""
        return self._sample(task) if isinstance(task, Chunk) else task.make(self.cascade)

    def _sample(self, chunk: Chunk) -> int:
        images = self._images(chunk)
        if self.source.extractor and self.extractor is not None:
            last = list(images.values())[-1].transpose(0, 2, 3, 1)
            found = self.extractor(list(last), [item.prompt for item in chunk.items])
            path = chunk.features(self.source.extractor)
            storage.put(path, safetensors.numpy.save(found))
        return len(chunk.items)

    def _images(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Return a chunk's images, uint8 (n, c, h, w) by member, in order; sample if need be."""
        if storage.exists(chunk.path):
            arrays = safetensors.numpy.load(storage.get(chunk.path))
            return {name: arrays[name] for name in self.source.snapshots}
        prompts = [item.prompt for item in chunk.items]
        images = self.cascade.sample(prompts, [item.seed for item in chunk.items], chunk.options)
        arrays = {name: to_uint8(x).cpu().numpy() for name, x in images.items()}
        storage.put(chunk.path, safetensors.numpy.save(arrays))
        return arrays


class Crew(NamedTuple):
    """Who sampled."""

    actors: int
    device: str
    """What each of them had to itself: `cuda`, a GPU, or `cpu`, a core."""


def sample_missing(source: Source, work: Sequence[Task], done: Callable[[int], None]) -> Crew:
    """Do tasks on an actor a GPU, or a core where there are none; return who did it.

    Ray must be connected. `done(images)` is called for each finished chunk. A dead actor is started
    again and repeats its chunk, which gives the same bytes; the chunk of one that is gone for good
    goes to others.
    """
    import ray
    from ray.exceptions import RayActorError

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count, takes = actors(nodes, len(work))
    _tell_waiting(nodes, takes)
    actor: Any = ray.remote(**takes, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Sampler)
    workers = [actor.remote(source) for _ in range(count)]
    waiting, left, idle, started = deque(work), len(work), [], 0
    # work goes to those that are there: one for which there is no core keeps nothing waiting
    running: dict[Any, tuple[Any, Task | None]] = {w.ready.remote(): (w, None) for w in workers}
    while left:
        finished, _ = ray.wait(list(running), num_returns=1)
        worker, task = running.pop(finished[0])
        try:
            done(ray.get(finished[0]))
            left -= task is not None
            started += task is None
            idle.append(worker)
        except RayActorError:
            if not running and not idle:
                raise
            print("warning: a worker of the evaluation is gone, others go on", file=sys.stderr)
            waiting.extend([task] if task is not None else [])
        while waiting and idle:
            worker, task = idle.pop(), waiting.popleft()
            running[worker.sample.remote(task)] = (worker, task)
    return Crew(started, "cuda" if "num_gpus" in takes else "cpu")


def actors(nodes: Sequence[Mapping[str, float]], work: int) -> tuple[int, dict[str, Any]]:
    """Return how many actors sample, and what each takes, of nodes with these resources.

    Where nodes have the resource `imagen_eval`, only they are used: elastic training must not find
    its nodes taken (shared/knowledge: ray.md, P3). Of nodes that are only expected there is one.
    """
    there = _used(nodes)
    gpus = int(sum(node.get("GPU", 0) for node in there))
    cores = int(sum(node.get("CPU", 0) for node in there))
    takes: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    if any(POOL in node for node in there):
        takes["resources"] = {POOL: 0.001}
    return max(1, min(work, gpus or cores)), takes


def _used(nodes: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """Return the nodes that sample; where they are still to come, one that stands for them."""
    awaited = session.expected()
    for name in (POOL, "GPU"):
        having = [node for node in nodes if node.get(name, 0) > 0]
        if having or name in awaited:
            return having or [awaited]
    return nodes


def _tell_waiting(nodes: Sequence[Mapping[str, float]], takes: Mapping[str, Any]) -> None:
    """Say so when no node has what an actor takes."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    needs = {names[key]: n for key, n in takes.items() if key in names} | takes.get("resources", {})
    if not any(all(node.get(name, 0) >= n for name, n in needs.items()) for node in nodes):
        print(f"eval: waiting for a machine with {' and '.join(needs)}", file=sys.stderr)


def sweep(work: Sequence[Chunk | Film], source: Source) -> None:
    """Delete what other cascades or options left in the folders of `work`'s chunks."""
    mine = {path for task in work for path in source.files(task)}
    for folder in {task.path.rpartition("/")[0] for task in work if isinstance(task, Chunk)}:
        for name in storage.listdir(folder):
            if storage.join(folder, name) not in mine:
                storage.delete(storage.join(folder, name))
        storage.sweep_temporary(folder)


def entries(folder: str, work: Sequence[Chunk | Film], source: Source) -> dict[str, dict[str, Any]]:
    """Return the files of the tasks as a manifest of `folder` lists them."""
    paths = [path for task in work for path in source.files(task)]

    def entry(path: str) -> tuple[str, dict[str, Any]]:
        data = storage.get(path)
        listed = {"bytes": len(data), "crc32c": storage.crc32c(data)}
        return path.removeprefix(folder).lstrip("/"), listed

    with ThreadPoolExecutor(AT_ONCE) as pool:  # a bucket takes its time for each answer
        return dict(pool.map(entry, paths))
