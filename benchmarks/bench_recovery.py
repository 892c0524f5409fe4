"""What lost, added and announced-to-leave nodes cost a training: Ray Train as it comes, and ours.

Both train the same member from the same code on local Ray nodes of one CPU; plain is a TorchTrainer
with `ScalingConfig(num_workers=(1, 2))`, `max_failures=-1`, Ray's own settings and no callbacks. A
node is killed, one is added, and one is announced to go in 30 s, and goes. Ray's part of a time
ends when the process of the new rank 0 is started; the rest is imports. Rounds take turns.

    python benchmarks/bench_recovery.py [ROUNDS]
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.local_nodes import HEALTH, LocalNodes
from runtime import log, session

BATCH = 32
EVERY = 100 * BATCH
NOTICE_S = 30.0
PATIENCE_S = 900.0
WAYS = ("plain", "ours")
MEMBER = {
    "size": 16,
    "network": {
        "kind": "base",
        "channels": 1,
        "widths": [32],
        "blocks": [1],
        "self_attention": [False],
        "cross_attention": [False],
        "text_dim": 0,
        "cond_dim": 16,
    },
}
TRAIN = {
    "images": 10**8,
    "global_batch": BATCH,
    "microbatch": BATCH,
    "workers": [1, 2],
    "lanes": 2,
    "window": 64,
    "lr": 1e-4,
    "checkpoint_every": EVERY,
    "snapshot_every": 10**8,
    "log_every": BATCH,
    "validate": 0,
    "grid": 0,
}


def project(folder: str) -> Any:
    """Write and index a tar of digits; return the config of a member without text on it."""
    import io

    from imagen import storage
    from imagen.config import build
    from imagen.data import digits, index, prepared
    from imagen.data.tars import write_tar
    from train.config import TrainStageConfig

    samples = []
    for number, (scan, _) in enumerate(digits.images()[:256]):
        out = io.BytesIO()
        scan.save(out, "png")
        samples.append((f"s{number:03d}", {"png": out.getvalue(), "txt": b"a digit"}))
    tar = f"{folder}/data/00000.tar"
    storage.put(tar, write_tar(samples))
    found = index.index_tar(storage.get(tar), tar, 0.0)
    source = {"tar": prepared.relative_tar(f"{folder}/index", tar), "tar_crc32c": None}
    body = index.publish(f"{folder}/index", "00000", found, source)
    prepared.publish(f"{folder}/index", [body], 0.0)
    tree = {"name": "bench", "out": folder, "data": {"heldout": 0.0}}
    tree |= {"members": {"base": MEMBER}, "train": {"base": TRAIN}}
    return build(TrainStageConfig, tree)


def plain(job: Any, wants: dict[str, float], storage_path: str) -> Any:
    """Return Ray's own elastic trainer, as its documentation shows it."""
    import ray.train.torch

    from train.elastic import train_fn

    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    return ray.train.torch.TorchTrainer(
        train_fn,
        train_loop_config={"job": job, "cpus": 1.0},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers, resources_per_worker=wants
        ),
        run_config=ray.train.RunConfig(
            name=job.launch,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=-1),
        ),
    )


class Watch:
    """A run in a thread, and what its log says."""

    def __init__(self, config: Any) -> None:
        from train import stage

        self.path = f"{config.run_dir('base')}/log.jsonl"
        self.thread = threading.Thread(target=stage.run, args=(config, "base"), daemon=True)
        self.thread.start()

    def wait(self, what: Callable[[list[dict]], bool]) -> list[dict]:
        """Wait for something in the log."""
        deadline = time.monotonic() + PATIENCE_S
        while not what(events := log.read(self.path)):
            assert self.thread.is_alive(), "the run ended"
            assert time.monotonic() < deadline, f"no more than {events[-2:]}"
            time.sleep(0.05)
        return events

    def event(self, world: int, act: Callable[[], None]) -> dict[str, float]:
        """Do something to the machines, wait for steps of so many ranks; return what it cost."""
        before = len(starts(log.read(self.path)))
        began = time.time()
        act()

        def there(events: list[dict]) -> bool:
            made = starts(events)
            return len(made) > before and made[-1]["world_size"] == world and is_step(events[-1])

        events = self.wait(there)
        start = starts(events)[-1]
        at = events.index(start)
        # with several starts, what counts is the work that the first one lost
        first = events.index(starts(events)[before])
        done = [event for event in events[:first] if is_step(event)]
        step = next(event for event in events[at:] if is_step(event))
        return {
            "total_s": step["time"] - began,
            "ray_s": max(0.0, born(start["pid"]) - began),
            "pause_s": step["time"] - done[-1]["time"],
            "lost_steps": (done[-1]["images_seen"] - events[first]["images_seen"]) / BATCH,
        }


def starts(events: list[dict]) -> list[dict]:
    """Return the starts of a log."""
    return [event for event in events if event.get("event") == "start"]


def is_step(event: dict) -> bool:
    """Tell whether an event is progress."""
    return "loss" in event


def born(pid: int) -> float:
    """Return when a process was started, in seconds since 1970."""
    ticks = int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def measure(way: str) -> dict[str, dict[str, float]]:
    """Run one training through the events; return what each of them cost."""
    if way == "plain":
        for name in [name for name in session.SETTINGS if name.startswith("RAY_TRAIN_")]:
            del session.SETTINGS[name]
    session.settings()
    from train import elastic

    if way == "plain":
        elastic._trainer, elastic._internals = plain, lambda: None
    nodes = LocalNodes(HEALTH if way == "ours" else {})
    try:
        with tempfile.TemporaryDirectory() as folder, session.connect(nodes.address):
            return _events(nodes, Watch(project(folder)))
    finally:
        nodes.close()


def _events(nodes: LocalNodes, watch: Watch) -> dict[str, dict[str, float]]:
    _, second = nodes.add(), nodes.add()

    def far(events: list[dict]) -> bool:
        """Tell whether a start has taken steps beyond a checkpoint, but not for long."""
        last = max((event["images_seen"] for event in events if is_step(event)), default=0)
        world = [start["world_size"] for start in starts(events)][-1:]
        return world == [2] and last % EVERY > EVERY // 2 and last > EVERY

    watch.wait(far)
    found = {"killed": watch.event(1, lambda: nodes.send(second, signal.SIGKILL))}
    found["added"] = watch.event(2, lambda: nodes.add() and None)
    watch.wait(far)
    third = nodes.nodes[-1]
    threading.Timer(NOTICE_S, nodes.send, (third, signal.SIGKILL)).start()
    found["announced"] = watch.event(1, lambda: nodes.drain(third, NOTICE_S))
    return found


def _one(way: str, path: str) -> None:
    """Write to a file what one training found; it is not over then, and nobody waits for it."""
    try:
        Path(path).write_text(json.dumps(measure(way)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Print a table of medians."""
    if sys.argv[1:2] == ["--one"]:
        _one(*sys.argv[2:4])
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    results: dict[str, list[dict]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[:: 1 if number % 2 == 0 else -1]:
            with tempfile.NamedTemporaryFile() as out:
                command = [sys.executable, __file__, "--one", way, out.name]
                subprocess.run(command, check=True)
                results[way].append(json.loads(Path(out.name).read_text()))
                print(f"# {way}: {json.dumps(results[way][-1])}", file=sys.stderr)
    print("| node | way | to the next step, s | of which Ray, s | pause, s | steps lost |")
    print("|---|---|---|---|---|---|")
    for what in ("killed", "added", "announced"):
        for way in WAYS:
            names = ("total_s", "ray_s", "pause_s", "lost_steps")
            cells = [statistics.median(r[what][name] for r in results[way]) for name in names]
            print(f"| {what} | {way} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
