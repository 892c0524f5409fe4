"""Measure both systems in turns: two processes, one step each, round after round.

Interleaved, so that what else the machine does hits both alike; medians, and the ratio of each
round, whose median is the result.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer import environment
from peer.cases import CASES, GPU_CASES, MATCHED, README, Case

HERE = Path(__file__).parent
MIB = 2**20


class Worker:
    """A process that measures one system."""

    def __init__(
        self, name: str, python: Path, script: str = "worker.py", **variables: str
    ) -> None:
        root = str(HERE.parents[1])
        # threads that wait without spinning keep CPU time a measure of work
        env = {**os.environ, "PYTHONPATH": root, "OMP_WAIT_POLICY": "passive", **variables}
        command = [str(python), "-W", "ignore", str(HERE / script), name]
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the reply to a request."""
        assert self.process.stdin is not None, "opened with a pipe"
        assert self.process.stdout is not None, "opened with a pipe"
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it died of is told below
        line = self.process.stdout.readline()
        if not line:
            _, told = self.process.communicate()
            raise SystemExit(f"error: the worker of {self.name} ended:\n{told[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@dataclass
class Result:
    """What one system needs for one case."""

    params: int
    wall_s: list[float]
    cpu_s: list[float]
    peak_bytes: float
    flop: float
    flop_forward: float


def measure(case: Case, what: str, args: argparse.Namespace) -> dict[str, Result]:
    """Return the results of the systems for one case, measured in turns."""
    names = {"ours": Path(sys.executable)}
    if not args.alone:
        names["theirs"] = environment.python()
    workers = [Worker(name, python) for name, python in names.items()]
    start = {"what": what, "case": case.json(), "threads": args.threads, "device": args.device}
    begun = [w.ask(do="start", compile=args.compile, **start) for w in workers]
    rounds = [[w.ask(do="step") for w in workers] for _ in range(args.rounds + 2)][2:]
    for worker in workers:
        worker.close()
    ends = [_memory_and_flop(name, python, start) for name, python in names.items()]
    return {
        worker.name: Result(
            params=begun[i]["params"],
            wall_s=[r[i]["wall_s"] for r in rounds],
            cpu_s=[r[i]["cpu_s"] for r in rounds],
            peak_bytes=ends[i]["peak_bytes"],
            flop=ends[i]["flop"],
            flop_forward=ends[i].get("flop_forward", 0.0),
        )
        for i, worker in enumerate(workers)
    }


def _memory_and_flop(name: str, python: Path, start: dict[str, Any]) -> dict[str, Any]:
    # a process of its own, whose allocator gives memory back at once: no holes are counted
    worker = Worker(name, python, MALLOC_MMAP_THRESHOLD_="1000000")
    worker.ask(do="start", compile=False, **start)
    for _ in range(2):
        worker.ask(do="step")
    found = worker.ask(do="end")
    worker.close()
    return found


def _ratio(results: dict[str, Result], key: str) -> float:
    pairs = zip(getattr(results["theirs"], key), getattr(results["ours"], key), strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def rows(case: Case, results: dict[str, Result], peak_flop: float | None) -> list[str]:
    """Return the table's lines of a case: one a system, and the ratio."""
    lines = []
    for name, r in results.items():
        wall, cpu = statistics.median(r.wall_s), statistics.median(r.cpu_s)
        forward = f"{r.flop_forward / case.batch / 1e9:.1f} / " if r.flop_forward else ""
        rate = r.flop / (cpu if peak_flop is None else wall)
        used = f"{rate / 1e9:.0f}" if peak_flop is None else f"{rate / peak_flop:.0%}"
        lines.append(
            f"| {case.name} | {name} | {r.params / 1e6:.2f} | "
            f"{forward}{r.flop / case.batch / 1e9:.1f} | {wall:.3f} | {cpu:.3f} | "
            f"{case.batch / wall:.2f} | {used} | {r.peak_bytes / MIB:,.0f} |"
        )
    if "theirs" in results:
        ours, theirs = results["ours"], results["theirs"]
        lines.append(
            f"| | **ours over theirs** | {ours.params / theirs.params:.2f} | "
            f"{ours.flop / theirs.flop:.2f} | **{_ratio(results, 'wall_s'):.2f}x faster** | "
            f"**{_ratio(results, 'cpu_s'):.2f}x faster** | | | "
            f"**{ours.peak_bytes / theirs.peak_bytes:.2f}** |"
        )
    return lines


def machine(args: argparse.Namespace) -> str:
    """Return what the numbers were measured on, in words."""
    if args.device == "cuda":
        where = torch.cuda.get_device_name() + ", bf16"
    else:
        info = Path("/proc/cpuinfo")
        models = (
            [x for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
        )
        name = models[0].split(":")[1].strip() if models else platform.processor()
        where = f"{name}, {os.cpu_count()} cores, {args.threads} threads, float32"
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{where}, torch {torch.__version__}{load}, {args.rounds} rounds"


def parse(description: str) -> argparse.Namespace:
    """Return the options that both benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=4, help="measured steps of each system")
    parser.add_argument(
        "--all", action="store_true", help="the README's and matched architectures as well"
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--alone", action="store_true", help="ours only: needs no other package")
    parser.add_argument("--compile", action="store_true", help="compile our blocks; always on GPUs")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if on_gpu else "cpu")
    args = parser.parse_args()
    args.compile = args.compile or args.device == "cuda"
    return args


def run(what: str, args: argparse.Namespace) -> None:
    """Print the table of a kind of step: `train` or `sample`."""
    cases = (
        GPU_CASES if args.device == "cuda" else (*CASES, *((*README, *MATCHED) if args.all else ()))
    )
    peak_flop = None
    print(machine(args), flush=True)
    if args.device == "cuda":
        worker = Worker("ours", Path(sys.executable))
        peak_flop = worker.ask(do="matmul")["flop_per_s"]
        worker.close()
        print(f"measured peak of bf16 matmul: {peak_flop / 1e12:.0f} TFLOP/s")
    use = "GFLOP per CPU-s" if peak_flop is None else "share of that peak"
    flop = "GFLOP/image forward / step" if what == "train" else "GFLOP/image"
    print(f"\n| case | system | parameters, M | {flop} | wall s | CPU s | images/s | {use} | "
          f"peak MiB over start |\n|{'---|' * 9}", flush=True)  # fmt: skip
    for case in cases:
        if args.only in case.name:
            lines = rows(case, measure(case, what, args), peak_flop)
            print("\n".join(lines), flush=True)


def main(what: str, description: str) -> int:
    """Run a benchmark; return its exit status."""
    try:
        run(what, parse(description))
    except environment.NoPeer as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0
