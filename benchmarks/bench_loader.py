"""Loading training data: how near to the decoder's limit, beside webdataset and mosaicml-streaming.

`python benchmarks/bench_loader.py [ROUNDS] [--streaming PYTHON]`. One process, one thread, files in
the page cache, images per CPU second. All work takes turns, round after round; a share is the
median of the rounds' own shares, so other load on the machine hits both sides.

`--streaming` is a Python that has mosaicml-streaming (its requirements clash with ours):

    python -m venv /tmp/streaming && /tmp/streaming/bin/pip install mosaicml-streaming==0.13.0
"""

import argparse
import contextlib
import io
import platform
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import loader_data
import numpy as np
import torch
from PIL import Image
from webdataset.compat import WebDataset

from imagen.data import jpeg
from imagen.data.order import Order
from imagen.data.randomness import Purpose
from imagen.network.unet import build
from train import data, feed
from train.job import Inputs, Job
from train.loop import Trainer, World

BATCH = 128
COUNTS = {64: 2048, 256: 384}
"""Images of a data set, by side in pixels; whole batches."""
SIMPLEJPEG = jpeg.simplejpeg
Work = dict[str, Callable[[], float]]
"""Each does a piece of work on all images and returns images per CPU second."""


class Joined(data.Samples):
    """Samples without noise: pictures joined with embeddings, as the other systems give them."""

    def _normals(self, purpose: Purpose, positions: object, shape: object) -> torch.Tensor:
        del purpose, positions, shape
        return torch.empty(0)


def timed(count: int, function: Callable[[], object], fast: bool = False) -> Callable[[], float]:
    """Return work that is timed; `fast`: with simplejpeg."""

    def work() -> float:
        jpeg.simplejpeg = SIMPLEJPEG if fast else None
        began = time.process_time()
        function()
        return count / (time.process_time() - began)

    return work


def ours(samples: data.Samples, steps: int) -> Callable[[], None]:
    """Return an epoch of ours, globally shuffled; it could be resumed at any step."""

    def epoch() -> None:
        positions = data.Positions([range(BATCH)], BATCH, 0, steps)
        for _ in data.loader(samples, positions, 0, pin=False):
            pass

    return epoch


def theirs(tars: list[str]) -> Callable[[], None]:
    """Return an epoch of webdataset: shards and 1,000 samples at a time are shuffled."""

    def epoch() -> None:
        stream = WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000)
        batches = stream.decode("rgb8").to_tuple("jpg", "txt").batched(BATCH)
        for _ in cast("Iterable[object]", batches):
            pass

    return epoch


def work_of(side: int, folder: str) -> Work:
    """Return what is compared for one size of pictures."""
    count = COUNTS[side]
    config = loader_data.project(folder, side, count, BATCH)
    inputs = Inputs.open(config, "base")
    whole = inputs.samples(config, "base")
    joined = Joined(inputs.prepared, inputs.embeddings, inputs.order, whole.draws)
    shards = inputs.prepared.shards
    raw = [inputs.prepared.image(s, r) for s, shard in enumerate(shards) for r in range(shard.rows)]
    steps, tars = count // BATCH, [shard.tar for shard in shards]

    def pillow() -> None:
        for encoded in raw:
            np.asarray(Image.open(io.BytesIO(encoded)))

    def simple() -> None:
        for encoded in raw:
            SIMPLEJPEG.decode_jpeg(encoded, "RGB")

    return {
        "decode limit, Pillow": timed(count, pillow),
        "ours, decode and join": timed(count, ours(joined, steps)),
        "ours, with noise and all draws": timed(count, ours(whole, steps)),
        "webdataset": timed(count, theirs(tars)),
        "decode limit, simplejpeg": timed(count, simple),
        "ours, simplejpeg, decode and join": timed(count, ours(joined, steps), fast=True),
        "ours, simplejpeg, with noise and all draws": timed(count, ours(whole, steps), fast=True),
    }


@contextlib.contextmanager
def streaming(python: str | None, folder: str) -> Iterator[Work]:
    """Yield the work of mosaicml-streaming, done by a process of its own."""
    if python is None:
        yield {}
        return
    script = str(Path(__file__).with_name("streaming_side.py"))
    words = [python, script, f"{folder}/files", f"{folder}/mds", str(BATCH)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        source, sink = process.stdout, process.stdin
        assert source is not None
        assert sink is not None

        def ask(what: str) -> str:
            print(what, file=sink, flush=True)
            return source.readline()

        assert source.readline() == "ready\n", "the other side has told why not"
        yield {
            "decode limit, Pillow, its environment": lambda: float(ask("limit")),
            "mosaicml-streaming": lambda: float(ask("iterate")),
        }
        print("end", file=sink, flush=True)


def table(side: int, work: Work, rounds: int) -> None:
    """Print the rates and the shares of the decode limit that stands before them."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, one in work.items():
            rates[name].append(one())
    print(f"\n| {side} px | images/CPU-s | share of the decode limit |\n|---|---|---|")
    limit: list[float] = []
    for name, seen in rates.items():
        seen = seen[1:]
        limit = seen if name.startswith("decode limit") else limit
        share = statistics.median(a / b for a, b in zip(seen, limit, strict=True))
        print(f"| {name} | {statistics.median(seen):,.0f} | {share:.0%} |")


def order() -> None:
    """Print what seeking in the order costs, and its memory."""
    tracemalloc.start()
    large = Order([10_000] * 100_000, seed=0, lanes=64, window=40_000, global_batch=2048)
    large.batch(0)
    memory = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print("\n| order | shards | lanes x window | first batch at step 10^6 | later batches |")
    print("|---|---|---|---|---|")
    for shards, lanes, window, batch in ((4000, 8, 4096, 256), (100_000, 64, 40_000, 2048)):
        seeks, later = [], []
        for _ in range(5):
            fresh = Order([10_000] * shards, 0, lanes, window, batch)
            for step, times in ((10**6, seeks), (10**6 + 1, later)):
                began = time.process_time()
                fresh.batch(step)
                times.append((time.process_time() - began) * 1e3)
        told = " | ".join(f"{statistics.median(times):.1f} ms" for times in (seeks, later))
        print(f"| batch {batch} | {shards:,} | {lanes} x {window:,} | {told} |")
    print(f"\nPeak memory of an order of 100,000 shards, with its first batch: {memory:.0f} MB.")


def demo(folder: str, steps: int = 60) -> None:
    """Print which share of a step of the digits members goes into loading."""
    print("\n| member | loading processes | step, ms | waiting for data | loading, CPU |")
    print("|---|---|---|---|---|")
    for member in ("base", "sr1"):
        for workers in (0, 1):
            config = loader_data.digits(folder, loader_workers=workers)
            step, wait, cpu = _steps(Job(config, member, "bench"), steps)
            told = f"{cpu:.1%}" if workers == 0 else "in the other process"
            print(f"| {member} | {workers} | {step * 1e3:.1f} | {wait:.1%} | {told} |")


def _steps(job: Job, steps: int) -> tuple[float, float, float]:
    """Return seconds a step, the share of waiting, and of CPU time in waiting."""
    inputs, world = Inputs.open(job.config, job.member), World(0, 1, torch.device("cpu"))
    member = job.config.members[job.member]
    trainer = Trainer(build(member.network).train(), member, job.train, world, 0)
    waits, walls, loads, cpus = [], [], [], []
    with feed.feed(job, inputs, world, 0) as batches:
        for _ in range(steps):
            wall, cpu = time.perf_counter(), time.process_time()
            parts = next(batches)
            waits.append(time.perf_counter() - wall)
            loads.append(time.process_time() - cpu)
            trainer.step(parts)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    half = slice(steps // 2, None)  # small data sets are decoded once; workers have started
    wall = statistics.median(walls[half])
    wait, load = statistics.median(waits[half]) / wall, statistics.median(loads[half])
    return wall, wait, load / statistics.median(cpus[half])


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=9)
    parser.add_argument("--streaming", help="a Python that has mosaicml-streaming")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {arguments.rounds} rounds")
    order()
    with tempfile.TemporaryDirectory() as folder:
        demo(f"{folder}/digits")
        data.CACHE_BYTES = 0  # a large data set is decoded each time
        for side in COUNTS:
            work = work_of(side, f"{folder}/{side}")
            with streaming(arguments.streaming, f"{folder}/{side}") as other:
                table(side, work | other, arguments.rounds)
    jpeg.simplejpeg = SIMPLEJPEG


if __name__ == "__main__":
    main()
