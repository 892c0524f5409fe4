"""Tables of simulated trainings, with their spread over seeds."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.preemption import runs
from benchmarks.preemption.market import HOUR
from benchmarks.preemption.runs import Case
from benchmarks.preemption.training import Outcome

LIFETIMES_H = (1, 2, 4, 12, 24)
FACTORS = (0.5, 1.0, 2.0, 4.0)
EVERY_MIN = (1, 2, 5, 10, 30)
SAVES_S = (2, 5, 10, 20, 40)
RATIOS = (0.2, 0.3, 0.4, 0.6, 0.8)
PRICE = 0.4
"""A spot machine's hour, where one on demand costs 1."""
NAMES = {
    "ours": "ours",
    "eager": "ours, growing at once",
    "elastic": "Ray, elastic",
    "elastic, asks": "Ray, elastic, asks",
    "fixed": "Ray, fixed size",
    "fixed, asks": "Ray, fixed size, asks",
    "calm": "fixed size, on demand",
}

Column = Callable[[list[Outcome], Case], str]


@dataclass(frozen=True, slots=True)
class Shown:
    """A mean and its spread."""

    low: float
    mean: float
    high: float


class Results:
    """Outcomes by way and case; each is simulated once."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds
        self.found: dict[tuple[str, Case], list[Outcome]] = {}

    def of(self, way: str, case: Case) -> list[Outcome]:
        """Return the outcomes of all seeds."""
        key = way, case
        if key not in self.found:
            print(f"# {way} {case}", file=sys.stderr)
            if way == "calm":
                self.found[key] = [runs.on_demand(case)]
            else:
                self.found[key] = [runs.run(way, case, seed) for seed in range(self.seeds)]
        return self.found[key]

    def goodput(self, way: str, case: Case) -> Shown:
        """Return the share of the paid time that is in the result."""
        return spread([one.goodput for one in self.of(way, case)])

    def cost(self, way: str, case: Case, price: float = PRICE) -> Shown:
        """Return what a useful hour costs: the mean of the costs, not the cost of the mean."""
        return spread([price / one.goodput for one in self.of(way, case)])


def spread(values: Sequence[float]) -> Shown:
    """Return the mean of the seeds, the lowest and the highest."""
    return Shown(min(values), statistics.mean(values), max(values))


def told(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Return a mean with its range, as a cell."""
    return cell(spread([value * scale for value in values]), digits)


def cell(shown: Shown, digits: int) -> str:
    """Return a mean and its spread, as a cell."""
    if shown.low == shown.high:
        return f"{shown.mean:.{digits}f}"
    return f"{shown.mean:.{digits}f} ({shown.low:.{digits}f}-{shown.high:.{digits}f})"


def living(hours: float, case: Case | None = None) -> Case:
    """Return a case whose machines live so long."""
    case = case or Case()
    return replace(case, market=replace(case.market, lifetime_s=hours * HOUR))


def main_table(results: Results) -> list[str]:
    """Return all contenders at all lifetimes."""
    lines = [
        "| mean lifetime | way | goodput, % | time, x undisturbed "
        f"| cost of a useful hour at {PRICE:g} | starts | machines lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for hours in LIFETIMES_H:
        for way in runs.WAYS:
            case = living(hours)
            found = results.of(way, case)
            ended = "" if all(one.finished for one in found) else ">"
            times = [one.training.now / case.undisturbed_s for one in found]
            cells = [
                f"{hours} h",
                NAMES[way],
                told([one.goodput for one in found], 100),
                ended + told(times, digits=2),
                cell(results.cost(way, case), 2),
                f"{statistics.mean(one.training.starts for one in found):.0f}",
                f"{min(one.training.machines_lost for one in found)} or more",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    calm = results.of("calm", living(LIFETIMES_H[-1]))
    cost = 1 / calm[0].goodput
    return [*lines, f"| never lost | {NAMES['calm']} | 100.0 | 1.00 | {cost:.2f} | 1 | 0 |"]


def where_table(results: Results, case: Case) -> list[str]:
    """Return what the paid time went to."""
    lines = [
        "| way | in the result, % | taken again | standing | in no group | booting | most starts "
        "from one checkpoint without a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in runs.WAYS:
        found = results.of(way, case)
        kinds = ("lost", "standing", "idle", "booting")
        shares = [100 * statistics.mean(one.share(kind) for one in found) for kind in kinds]
        goodput = 100 * results.goodput(way, case).mean
        fruitless = max(one.training.most_fruitless for one in found)
        cells = [NAMES[way], *(f"{cell:.1f}" for cell in (goodput, *shares)), str(fruitless)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sweep(
    results: Results, heads: Sequence[str], rows: Sequence[Sequence[Case]], what: Sequence[str]
) -> list[str]:
    """Return goodput in percent: a row a way and list of cases, a column a case."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for label, cases in zip(what, rows, strict=True):
        for way in runs.WAYS:
            cells = [told([one.goodput for one in results.of(way, c)], 100) for c in cases]
            lines.append(f"| {' | '.join([label, NAMES[way], *cells])} |")
    return lines


def factor_table(results: Results) -> list[str]:
    """Return goodput by the costs of a start."""
    heads = ["mean lifetime", "way", *(f"x{factor:g}" for factor in FACTORS)]
    hours = (1, 4, 12)
    rows = [[replace(living(h), factor=factor) for factor in FACTORS] for h in hours]
    return sweep(results, heads, rows, [f"{h} h" for h in hours])


def every_table(results: Results) -> list[str]:
    """Return goodput by the time between checkpoints."""
    heads = ["mean lifetime", "way", *(f"{minutes} min" for minutes in EVERY_MIN)]
    rows = [[replace(living(4), checkpoint_every_s=60.0 * m) for m in EVERY_MIN]]
    return sweep(results, heads, rows, ["4 h"])


def untuned_table(results: Results) -> list[str]:
    """Return goodput by how soon the head takes a silent machine for lost."""
    silent = (runs.TUNED_S, runs.UNTUNED_S)
    heads = ["mean lifetime", "way", *(f"noticed after {seconds:g} s" for seconds in silent)]
    hours = (1, 4, 12)
    rows = [[replace(living(h), silent_s=seconds) for seconds in silent] for h in hours]
    return sweep(results, heads, rows, [f"{h} h" for h in hours])


def notice_table(results: Results) -> list[str]:
    """Return goodput by the notice and the time that a checkpoint takes."""
    heads = ["notice", "way", *(f"{seconds} s" for seconds in SAVES_S)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for notice_s in (0.0, 15.0, 30.0, 120.0):
        market = replace(living(4).market, notice_s=notice_s)
        cases = [Case(market=market, save_s=float(seconds)) for seconds in SAVES_S]
        for way in ("ours", "elastic, asks"):
            cells = [told([one.goodput for one in results.of(way, c)], 100) for c in cases]
            lines.append(f"| {' | '.join([f'{notice_s:g} s', NAMES[way], *cells])} |")
    return lines


def price_table(results: Results) -> list[str]:
    """Return what a useful hour costs, by the price of a spot machine."""
    heads = ["way", *(f"{ratio:g}" for ratio in RATIOS), "as dear as on demand at"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    calm = results.of("calm", living(LIFETIMES_H[-1]))[0].goodput
    for way in runs.WAYS:
        cost = results.cost(way, living(4), 1.0).mean
        cells = [f"{ratio * cost:.2f}" for ratio in RATIOS]
        lines.append(f"| {' | '.join([NAMES[way], *cells, f'{1 / calm / cost:.2f}'])} |")
    return lines
