"""What a run of the line would do, take and cost, told before it is started. Touches nothing."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline import costs, footprint, work
from pipeline.config import PipelineConfig
from pipeline.footprint import Kept, Requests, size
from pipeline.prices import HEAD, Machine, Prices, money, spot_and_on_demand
from pipeline.stages import TRAIN, Stage, reasons, waves
from pipeline.status import hours, price_range
from pipeline.work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One stage of the plan."""

    stage: str
    why: str | None
    """Why it will run; None: it is fresh, nothing is to do."""
    detail: str
    """What is there."""
    work: Work
    machine: str
    gpu: bool
    """Whether its hours are of GPUs; else of cores."""
    usd: Mapping[str, float | None]
    """`spot` and `on_demand`; None: not known."""
    hours: float | None
    """With as many workers as it may have, or as one machine has room for; None: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The whole line."""

    items: list[Item]
    head: str
    """Machine of the head node."""
    hours: float | None
    """From start to end, machines always to be had; None: nothing of it is known."""
    head_usd: float | None
    kept: list[Kept]
    requests: Requests
    prices: Prices

    @property
    def unknown(self) -> list[str]:
        """Stages whose cost is not in the sums."""
        return [item.stage for item in self.items if item.why and item.work.worker_hours is None]

    def total(self, kind: str) -> float | None:
        """Return the sum over the stages whose cost is known, with the head's; None: no price."""
        found = [item.usd[kind] for item in self.items if item.work.worker_hours]
        if any(usd is None for usd in found):
            return None
        return sum(usd or 0.0 for usd in found) + (self.head_usd or 0.0)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of the stages for which they are known."""
        return sum(item.work.worker_hours or 0.0 for item in self.items if item.gpu)

    @property
    def stored(self) -> float:
        """Bytes of what is known to stay."""
        return sum(kept.num_bytes or 0.0 for kept in self.kept)

    @property
    def storage_usd_month(self) -> float:
        """Dollars a month."""
        return self.stored / footprint.GB * self.prices.storage_gb_month


def plan(
    config: PipelineConfig, line: Sequence[Stage], prices: Prices, machine: str | None = None
) -> Plan:
    """Look at every stage. `machine`: to count with in place of what the table says."""
    states = {stage.name: stage.state() for stage in line}
    why = reasons(line, states)
    items = []
    for stage in line:
        name, kind = machine_of(config, stage, prices, machine)
        state = states[stage.name]
        progress = costs.progress(config, stage, state)
        todo = work.left(config, stage, state, progress, kind, prices.assumed)
        items.append(_item(stage, why[stage.name], state.detail, todo, name, kind))
    by_name = {item.stage: item for item in items}
    lasts = _lasts(line, by_name)
    head, head_machine = prices.of(HEAD)
    left = {
        stage.training.member: by_name[stage.name].work.left or 0
        for stage in line
        if stage.training
    }
    training = [by_name[stage.name].hours for stage in line if stage.training]
    known = [found for found in training if found is not None]
    return Plan(
        items=items,
        head=head,
        hours=lasts,
        head_usd=None if lasts is None else lasts * head_machine.on_demand,
        kept=footprint.kept(config),
        requests=footprint.requests(config, left, sum(known) if known == training else None),
        prices=prices,
    )


def machine_of(
    config: PipelineConfig, stage: Stage, prices: Prices, chosen: str | None
) -> tuple[str, Machine]:
    """Return name and machine that a stage is counted on. Raises ConfigError."""
    use = TRAIN if stage.training else stage.name
    if use == "preencode" and not config.preencode.preencode.gpus_per_actor:
        use = "cores"
    return prices.of(use, chosen)


def _item(
    stage: Stage, why: str | None, detail: str, todo: Work, name: str, machine: Machine
) -> Item:
    taken = todo.worker_hours
    usd = {"spot": None, "on_demand": None} if taken is None else spot_and_on_demand(taken, machine)
    most = todo.workers * todo.per_worker if todo.workers else machine.workers
    return Item(
        stage=stage.name,
        why=why,
        detail=detail,
        work=todo,
        machine=name,
        gpu=bool(machine.cards),
        usd=usd,
        hours=None if taken is None else taken / most,
    )


def _lasts(line: Sequence[Stage], items: Mapping[str, Item]) -> float | None:
    """Return the hours of the longest way through the line, of what is known of it."""
    total, known = 0.0, False
    for wave in waves(line):
        found = [items[stage.name].hours for stage in wave if items[stage.name].hours is not None]
        known = known or bool(found)
        total += max(found, default=0.0)  # type: ignore[type-var]
    return total if known else None


def table(plan: Plan) -> Table:
    """Return the stages as a table."""
    shown = Table("stage", "runs, and why", "left, rate and where it is from", "takes", "costs")
    for item in plan.items:
        cells = (
            item.stage,
            f"no: {item.detail}" if item.why is None else f"yes: {item.why}",
            _left(item.work) if item.why else "",
            _takes(item) if item.why else "",
            f"{price_range(item.usd)}\n{item.machine}" if item.work.worker_hours else "",
        )
        shown.add_row(*map(Text, cells))
    return shown


def _left(todo: Work) -> str:
    amount = "" if todo.left is None or not todo.unit else f"{todo.left:,.0f} {todo.unit}"
    rate = f"at {todo.per_s:,.3g}/s a worker" if todo.per_s else ""
    first = ", ".join(filter(None, (amount, rate)))
    return "\n".join(filter(None, (first, todo.source)))


def _takes(item: Item) -> str:
    taken = item.work.worker_hours
    if taken is None or item.hours is None:
        return "?"
    unit = "GPU" if item.gpu else "core"
    return f"{taken:,.3g} {unit}-hours\n{hours(item.hours)} at best"


def storage_table(plan: Plan) -> Table:
    """Return what stays as a table."""
    shown = Table("stored", "size", "a month", "how that is known")
    for kept in plan.kept:
        usd = None
        if kept.num_bytes is not None:
            usd = kept.num_bytes / footprint.GB * plan.prices.storage_gb_month
        shown.add_row(*map(Text, (kept.kind, size(kept.num_bytes), money(usd), kept.source)))
    return shown


def lines(plan: Plan) -> list[str]:
    """Return the sums, and what has to be known to read them."""
    spot, on_demand = money(plan.total("spot")), money(plan.total("on_demand"))
    asked = plan.requests
    found = [
        f"in all     {plan.gpu_hours:,.3g} GPU-hours; {spot} with spot machines, {on_demand} on "
        "demand",
        f"head       {plan.head}, {money(plan.head_usd)} of it: on demand for "
        f"{'?' if plan.hours is None else hours(plan.hours)}",
        f"storage    {size(plan.stored)}, {money(plan.storage_usd_month)} a month in a bucket",
        f"requests   {asked.writes:,.0f} writes, {asked.reads:,.0f} reads, "
        f"{money(asked.usd(plan.prices))}; {'; '.join(asked.notes)}",
    ]
    if plan.unknown:
        found.append(f"not in it  {', '.join(plan.unknown)}: see above")
    if any(item.why and item.gpu and "assumed" in item.work.source for item in plan.items):
        found.append(
            f"assumed    {plan.prices.assumed.mfu:.0%} of a card's peak is for large networks: "
            "small ones stay far below it, and take as much longer"
        )
    found.append(
        f"prices     of {plan.prices.region}; work lost to preemptions, idle machines, disks and "
        "traffic to other regions are not in it"
    )
    return found


def as_json(plan: Plan) -> str:
    """Return the plan as a JSON object."""
    body: dict[str, Any] = {
        "stages": [_plain(item) for item in plan.items],
        "head": {"machine": plan.head, "hours": plan.hours, "usd": plan.head_usd},
        "gpu_hours": plan.gpu_hours,
        "usd": {kind: plan.total(kind) for kind in ("spot", "on_demand")},
        "storage": [dataclasses.asdict(kept) for kept in plan.kept],
        "storage_usd_month": plan.storage_usd_month,
        "requests": {**dataclasses.asdict(plan.requests), "usd": plan.requests.usd(plan.prices)},
        "unknown": plan.unknown,
        "prices": {"region": plan.prices.region, "sources": plan.prices.sources},
    }
    return json.dumps(body, indent=1)


def _plain(item: Item) -> dict[str, Any]:
    return {
        "stage": item.stage,
        "runs": item.why is not None,
        "why": item.why or item.detail,
        "left": item.work.left,
        "unit": item.work.unit,
        "per_worker_s": item.work.per_s,
        "rate_from": item.work.source,
        "worker_hours": item.work.worker_hours,
        "hours": item.hours,
        "gpu": item.gpu,
        "machine": item.machine,
        "usd": dict(item.usd),
    }
