"""What lost spot machines cost a training of 16 workers: ours, Ray 2.60's, a fixed size.

Ray's with a training function that asks it for notices, and with one that does not.

Simulated, not measured: the deciding functions are the real ones, and live through the same traces
of 1,000 lost machines and more; what a start costs is what bench_recovery.py has measured.

    python benchmarks/bench_preemption.py [--seeds 5] [--picture docs/preemption.png]
"""

import argparse
from collections.abc import Callable

from benchmarks.preemption import picture, report
from benchmarks.preemption.report import Results, living

TABLES: dict[str, Callable[[Results], list[str]]] = {
    "Contenders": report.main_table,
    "Where the paid time goes, machines live 4 h": lambda r: report.where_table(r, living(4)),
    "Goodput in % when starts and checkpoints cost more": report.factor_table,
    "Goodput in % by the time between checkpoints": report.every_table,
    "Goodput in % by when the head takes a silent machine for lost": report.untuned_table,
    "Goodput in % by notice, and by how long a checkpoint takes": report.notice_table,
    "Cost of a useful hour (on demand: 1) by the price of a spot hour, machines live 4 h": (
        report.price_table
    ),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="traces for each number (5)")
    parser.add_argument("--picture", default="", help="also draw a PNG there (needs Chromium)")
    args = parser.parse_args()
    results = Results(args.seeds)
    for title, table in TABLES.items():
        print(f"## {title}\n", *table(results), "", sep="\n", flush=True)
    if args.picture:
        picture.draw(results, args.picture)


if __name__ == "__main__":
    main()
