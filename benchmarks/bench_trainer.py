"""The whole training loop beside imagen-pytorch's ImagenTrainer: seconds of a step, and memory.

    python benchmarks/bench_trainer.py [--rounds N] [--only WORDS] [--alone]

Both read the same JPEGs and text embeddings from disk, train networks of the same size, average
the weights and clip gradients; two processes take steps in turns. README.md says what is alike.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peer import environment, pictures
from peer.cases import CASES, Case
from peer.compare import MIB, Worker, machine

WARM = 2
"""Steps before the first that counts."""
SCRIPT = "loop_worker.py"


@dataclass
class Result:
    """What one system's loop needs for one case."""

    params: int
    wall_s: list[float]
    cpu_s: list[float]
    save_s: float
    peak_bytes: float


def measure(case: Case, args: argparse.Namespace) -> dict[str, Result]:
    """Return the results of the systems for one case: time in turns, then memory alone."""
    pythons = {"ours": Path(sys.executable)}
    if not args.alone:
        pythons["theirs"] = environment.python()
    workers = [Worker(name, python, SCRIPT) for name, python in pythons.items()]
    start = [_start(worker, case, args) for worker in workers]
    rounds = [[w.ask(do="step") for w in workers] for _ in range(args.rounds + WARM)][WARM:]
    saves = [w.ask(do="save")["save_s"] for w in workers]
    for worker in workers:
        worker.close()
    peaks = [_peak(name, python, case, args) for name, python in pythons.items()]
    return {
        name: Result(
            params=start[i],
            wall_s=[r[i]["wall_s"] for r in rounds],
            cpu_s=[r[i]["cpu_s"] for r in rounds],
            save_s=saves[i],
            peak_bytes=peaks[i],
        )
        for i, name in enumerate(pythons)
    }


def _start(worker: Worker, case: Case, args: argparse.Namespace) -> int:
    """Build a system's loop on data of its own; return the number of its weights."""
    folder = tempfile.mkdtemp(dir=args.scratch)
    pictures.write(folder, case.size, case.tokens, case.text_dim)
    about = {"threads": args.threads, "folder": folder, "save_at": args.rounds + WARM + 1}
    return worker.ask(do="start", case=case.json(), **about)["params"]


def _peak(name: str, python: Path, case: Case, args: argparse.Namespace) -> float:
    """Return the peak of a process whose allocator gives memory back at once: no holes count."""
    worker = Worker(name, python, SCRIPT, MALLOC_MMAP_THRESHOLD_="1000000")
    _start(worker, case, args)
    for _ in range(3):
        worker.ask(do="step")
    found = worker.ask(do="end")["peak_bytes"]
    worker.close()
    return found


def _ratio(results: dict[str, Result], key: str) -> float:
    pairs = zip(getattr(results["theirs"], key), getattr(results["ours"], key), strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def rows(case: Case, results: dict[str, Result]) -> list[str]:
    """Return the table's lines of a case: one a system, and the ratio."""
    lines = [
        f"| {case.name}, batch {case.batch} | {name} | {r.params / 1e6:.2f} | "
        f"{statistics.median(r.wall_s):.3f} | {statistics.median(r.cpu_s):.3f} | "
        f"{r.save_s:.3f} | {r.peak_bytes / MIB:,.0f} |"
        for name, r in results.items()
    ]
    if "theirs" in results:
        ours, theirs = results["ours"], results["theirs"]
        lines.append(
            f"| | **ours over theirs** | {ours.params / theirs.params:.2f} | "
            f"**{_ratio(results, 'wall_s'):.2f}x faster** | "
            f"**{_ratio(results, 'cpu_s'):.2f}x faster** | | "
            f"**{ours.peak_bytes / theirs.peak_bytes:.2f}** |"
        )
    return lines


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help="measured steps of each system")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--alone", action="store_true", help="ours only: needs no other package")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args(words)
    args.device = "cpu"
    return args


def main() -> int:
    """Print the table; return the exit status."""
    args = parse()
    print(machine(args), flush=True)
    print("\n| case | system | parameters, M | wall s a step | CPU s a step | a checkpoint stops "
          f"training, wall s | peak MiB over start |\n|{'---|' * 7}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="imagen-bench-") as args.scratch:
        try:
            for case in CASES:
                if args.only in case.name:
                    print("\n".join(rows(case, measure(case, args))), flush=True)
        except environment.NoPeer as err:
            print(f"error: {err}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
