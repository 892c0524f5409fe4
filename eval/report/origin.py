"""Where it comes from and what it took: provenance, settings, cost, and what has failed."""

import time
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import Any

from eval.figures import figures, headlines, told
from eval.history import Evaluation, History, Run
from eval.page import folded, paragraph, section, table
from imagen import storage
from imagen.config import dump_yaml
from runtime import log

PAUSE_S = 600.0
"""A silence in a log that is longer was a pause: nobody worked."""
LOGS = (("preencode", "encoding captions"), ("prepare", "preparing images"))


def failures(found: History) -> str:
    """Return the section on evaluations that failed."""
    rows = [
        [f"<code>{escape(f.name)}</code>", f"{f.tries}", _when(f.time), escape(f.reason)]
        for f in found.failures
    ]
    if not rows:
        return ""
    return section(
        "Evaluations that failed",
        table(["evaluation", "times", "last", "why"], rows, "failed evaluations"),
        paragraph("They are tried again when the evaluation is run again."),
    )


def damaged(found: History) -> str:
    """Return the section on finished evaluations that are left out."""
    rows = [[f"<code>{escape(one.key[0])}</code>", escape(one.message)] for one in found.damaged]
    if not rows:
        return ""
    return section(
        "Evaluations that are damaged",
        table(["evaluation", "what is wrong"], rows, "damaged evaluations"),
        paragraph("They are left out. Delete their manifest.json to have them made again."),
    )


def _when(stamp: float | None) -> str:
    if stamp is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(stamp))


def origin(newest: Evaluation) -> str:
    """Return the section on what was evaluated, by which code and where."""
    metrics = newest.metrics
    rows = [
        [escape(name), f"{newest.images_seen[name]:,}", escape(code(provenance))]
        for name, provenance in metrics["provenance"].items()
    ]
    name, encoder = (escape(metrics["encoder"][key]) for key in ("name", "fingerprint"))
    facts = [
        ["cascade", f"<code>{escape(metrics['cascade'])}</code>"],
        ["data set", f"<code>{escape(str(metrics['data']))}</code>"],
        ["text encoder", f"{name} <code>{encoder}</code>"],
        ["evaluation", f"<code>{escape(newest.name)}</code>"],
        *([escape(key), escape(str(value))] for key, value in metrics["environment"].items()),
    ]  # fmt: skip
    members = table(["member", "images seen", "code version"], rows, "members")
    told_each = [
        folded(f"Provenance of {name}", _tree(provenance))
        for name, provenance in metrics["provenance"].items()
        if provenance
    ]
    return section("Where it comes from", members, table([], facts, "facts"), *told_each)


def code(provenance: dict[str, Any]) -> str:
    """Return which version of the code trained a member."""
    return str(provenance.get("code_version", "unknown"))


def _tree(value: Any) -> str:
    return f'<pre tabindex="0">{escape(dump_yaml(value))}</pre>'


def config(newest: Evaluation) -> str:
    """Return the configuration that was evaluated with, folded."""
    text = newest.file("config.yaml").decode()
    return folded("Configuration", f'<pre tabindex="0">{escape(text)}</pre>')


def others(found: History) -> str:
    """Return the evaluations that are on no curve above, and why."""
    newest = found.newest
    if newest is None or not found.others:
        return ""
    rows = []
    for one in found.others:
        known = figures(one.metrics)
        first = [f"{told(k).title} {told(k).text(known[k].value)}" for k in headlines(known)[:2]]
        cells = [one.name, f"{one.at:,}", _differs(one, newest), "; ".join(first)]
        rows.append([escape(cell) for cell in cells])
    head = ["evaluation", "images seen", "differs by", "figures"]
    return section("Evaluated in another way", table(head, rows, "other evaluations"))


def _differs(one: Evaluation, newest: Evaluation) -> str:
    """Return why an evaluation is on no curve of the newest one."""
    settings = newest.settings
    why = ["a person chose its snapshots"] if one.named else []
    why += [f"{k}: {_short(v)}" for k, v in one.settings.items() if v != settings[k]]
    return "; ".join(why) or "evaluated again later, at as many images"


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def cost(found: History) -> str:
    """Return the section on what it all has taken so far."""
    rows = [*_stages(found), *map(_training, found.runs), *_evaluations(found)]
    head = ["part", "wall time", "images", "images a second"]
    total = sum(seconds for _, seconds, _ in rows)
    told_rows = [_row(*row) for row in rows if row[1]]
    told_rows.append([f"<b>{cell}</b>" for cell in ("together", clock(total), "", "")])
    return section("Cost so far", table(head, told_rows, "cost"), _parts(found))


def _row(part: str, seconds: float, images: int | None) -> list[str]:
    count = "" if images is None else f"{images:,}"
    rate = "" if images is None else f"{images / seconds:.4g}"
    return [escape(part), clock(seconds), count, rate]


def _stages(found: History) -> Iterator[tuple[str, float, int | None]]:
    for name, part in LOGS:
        events = log.read(storage.join(found.config.out, "logs", f"{name}.jsonl"))
        yield part, worked(events), None


def _training(run: Run) -> tuple[str, float, int | None]:
    seen = max((e["images_seen"] for e in run.events if "images_seen" in e), default=0)
    return f"training {run.member}", worked(run.events), seen or None


def _evaluations(found: History) -> Iterator[tuple[str, float, int | None]]:
    seconds = [sum(e.metrics["cost"]["seconds"].values()) for e in found.evaluations]
    images = sum(int(e.body.get("images") or 0) for e in found.evaluations)
    what = f"{len(seconds)} evaluation{'s' if len(seconds) > 1 else ''}"
    yield what, float(sum(seconds)), images or None


def _parts(found: History) -> str:
    newest = found.newest
    assert newest is not None, "a page is of at least one evaluation"
    seconds = newest.metrics["cost"]["seconds"]
    told_parts = ", ".join(f"{part} {clock(value)}" for part, value in seconds.items())
    return paragraph(
        f"Wall time, added up from logs; pauses over {PAUSE_S / 60:.0f} minutes are left out. The "
        f"newest evaluation: {told_parts}."
    )


def worked(events: list[dict[str, Any]]) -> float:
    """Return the seconds that a log tells of, without its pauses."""
    times = sorted(e["time"] for e in events if "time" in e)
    return sum(b - a for a, b in pairwise(times) if b - a <= PAUSE_S)


def clock(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
