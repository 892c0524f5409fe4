"""How far each stage is, how fast it goes and what it took, for people and for programs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline import costs
from pipeline.config import PipelineConfig
from pipeline.costs import Progress
from pipeline.jobs import JobInfo
from pipeline.prices import CORES, ON_CORES, Prices, money, spot_and_on_demand
from pipeline.stages import TRAIN, Stage
from runtime.state import StageState

COLOURS = {
    "done": "green",
    "running": "cyan",
    "partial": "yellow",
    "stale": "magenta",
    "missing": "red",
}
SHOWN_OUTPUTS = 2
"""Outputs that the table names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a stage took so far."""

    worker_hours: float
    machine: str
    """What the price is of: a worker is one of its GPUs, or one of its cores."""
    usd: Mapping[str, float | None]
    """`spot` and `on_demand`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """All there is to say about one stage."""

    state: StageState
    progress: Progress
    cost: Cost | None
    """None: the stage does not tell."""
    job: JobInfo | None
    """The newest job of it on the cluster that was asked."""


def rows(
    config: PipelineConfig,
    line: Sequence[Stage],
    prices: Prices,
    machine: str | None = None,
    jobs: Mapping[str, Sequence[JobInfo]] | None = None,
) -> list[Row]:
    """Look at each stage. `machine`: what to count with in place of the table's choice."""
    found = []
    for stage in line:
        state = dataclasses.replace(stage.state(), stage=stage.name)
        progress = costs.progress(config, stage, state)
        newest = next(reversed((jobs or {}).get(stage.name, ())), None)
        cost = _cost(stage, progress, prices, machine)
        found.append(Row(state=state, progress=progress, cost=cost, job=newest))
    return found


def _cost(stage: Stage, progress: Progress, prices: Prices, chosen: str | None) -> Cost | None:
    if progress.worker_s is None:
        return None
    hours = progress.worker_s / 3600
    if not progress.gpu:
        name, machine = prices.of(stage.name if stage.name in ON_CORES else CORES, chosen)
        return Cost(worker_hours=hours, machine=name, usd=spot_and_on_demand(hours, machine))
    fits = chosen and prices.named(chosen).cards  # what GPUs did, no cores can be paid for
    name, machine = prices.of(TRAIN if stage.training else stage.name, chosen if fits else None)
    if not machine.cards:
        return Cost(worker_hours=hours, machine=name, usd={"spot": None, "on_demand": None})
    return Cost(worker_hours=hours, machine=name, usd=spot_and_on_demand(hours, machine))


def table(rows: Sequence[Row], out: str) -> Table:
    """Return the rows as a table; paths below `out` without it."""
    titles = ["stage", "state", "progress, rate, time left", "cost so far", "detail, outputs"]
    with_jobs = any(row.job for row in rows)
    shown = Table(*titles, *(["job"] if with_jobs else []))
    for row in rows:
        status = row.state.status
        cells = [
            row.state.stage,
            Text(status, COLOURS[status]),
            "\n".join(filter(None, (_amount(row.progress), _speed(row)))),
            _spent(row.cost),
            _detail(row.state, out),
        ]
        shown.add_row(*cells, *([_job(row.job)] if with_jobs else []))
    return shown


def _amount(progress: Progress) -> str:
    if progress.total is None:
        return ""
    if progress.done is None:
        return f"? of {progress.total:,} {progress.unit}"
    if progress.done == progress.total:
        return f"{progress.total:,} {progress.unit}"
    share = f" ({progress.done / progress.total:.0%})" if progress.total else ""
    return f"{progress.done:,} of {progress.total:,} {progress.unit}{share}"


def _rate(progress: Progress) -> str:
    if progress.per_s is None:
        return ""
    rate = f"{progress.per_s:,.0f}" if progress.per_s >= 10 else f"{progress.per_s:.2g}"
    workers = f", {progress.workers} workers" if (progress.workers or 1) > 1 else ""
    return f"{rate} {progress.unit}/s{workers}"


def _speed(row: Row) -> str:
    to_go = left(row)
    return ", ".join(filter(None, (_rate(row.progress), f"{to_go} left" if to_go else "")))


def left(row: Row) -> str:
    """Return the time to the end at the last rate, "" when it is done or nothing is known."""
    left_s = row.progress.left_s
    if row.state.status == "done" or left_s is None:
        return ""
    return str(timedelta(seconds=round(left_s)))


def _spent(cost: Cost | None) -> str:
    if cost is None:
        return ""
    return f"{hours(cost.worker_hours)}\n{price_range(cost.usd)}"


def hours(worker_hours: float) -> str:
    """Return hours, minutes below one of them, seconds below one minute."""
    if worker_hours >= 1:
        return f"{worker_hours:,.1f} h"
    minutes = worker_hours * 60
    return f"{minutes:.1f} min" if minutes >= 1 else f"{minutes * 60:.2g} s"


def price_range(usd: Mapping[str, float | None]) -> str:
    """Return `$1.20 to $3.40`: spot and on demand."""
    spot, on_demand = money(usd["spot"]), money(usd["on_demand"])
    return on_demand if usd["spot"] is None or spot == on_demand else f"{spot} to {on_demand}"


def _detail(state: StageState, out: str) -> Text:
    text = Text(state.detail)
    if state.status == "missing":
        return text
    names = [path.removeprefix(f"{out.rstrip('/')}/") for path in state.outputs[:SHOWN_OUTPUTS]]
    more = [f"{len(state.outputs) - SHOWN_OUTPUTS} more"] * (len(state.outputs) > SHOWN_OUTPUTS)
    if names:
        text.append("\n" + ", ".join([*names, *more]), "dim")
    return text


def _job(job: JobInfo | None) -> str:
    return f"{job.status}\n{job.id}" if job else ""


def notes(rows: Sequence[Row], prices: Prices) -> list[str]:
    """Return what has to be known to read the costs."""
    names = sorted({row.cost.machine for row in rows if row.cost})
    if not names:
        return []
    return [
        f"cost: hours of workers (GPUs, or cores where there is none), and what they cost as part "
        f"of {' and '.join(names)} in {prices.region}, spot to on demand"
    ]


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as a JSON list of objects."""
    return json.dumps([_plain(row) for row in rows], indent=1)


def _plain(row: Row) -> dict[str, Any]:
    progress = dataclasses.asdict(row.progress)
    worker_s = progress.pop("worker_s")
    return {
        **dataclasses.asdict(row.state),
        "progress": progress,
        "left_s": row.progress.left_s,
        "worker_hours": None if worker_s is None else worker_s / 3600,
        "machine": row.cost.machine if row.cost else None,
        "cost_usd": dict(row.cost.usd) if row.cost else None,
        "job": dataclasses.asdict(row.job) if row.job else None,
    }
