"""report.html: one file that needs nothing else, for people. The numbers are in metrics.json."""

import base64
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from eval import charts
from eval.config import EvalConfig, GridConfig
from eval.page import table, tile, whole
from eval.prompts import grid_rows
from eval.score import Sampled
from imagen import picture, storage
from imagen.config import dump_yaml
from runtime import log

SHOWN_NEAREST = 8
THUMBNAIL_PX = 96


@dataclass(frozen=True, slots=True)
class Pair:
    """A sample, by its number, and the training image nearest to it."""

    sample: int
    distance: float
    original: np.ndarray
    """uint8 (h, w, c)."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the page shows beside metrics.json: images, and what was found about each of them."""

    sampled: Sampled
    verdicts: np.ndarray | None
    """Digit seen in each final image, -1 for none; None when nobody judged."""
    pairs: list[Pair]
    """The samples nearest to a training image."""


def grid(sampled: Sampled, shape: GridConfig) -> Image.Image:
    """Return the labelled grid: a row for each prompt, all members of each seed side by side."""
    rows = grid_rows(sampled.items, shape.prompts, shape.seeds)
    seeds = max(len(row) for row in rows)
    members = list(sampled.members)
    images = [[sampled.members[name][i] for i in row for name in members] for row in rows]
    labels = [_row_label(sampled, row) for row in rows]
    style = picture.GridStyle(group=len(members))
    return picture.grid(images, labels, members * seeds, style)


def preview(sampled: Sampled, shape: GridConfig) -> Image.Image:
    """Return the last member's images of the grid without labels: a column for each prompt."""
    last = list(sampled.members.values())[-1]
    rows = grid_rows(sampled.items, shape.prompts, shape.seeds)
    seeds = min(len(row) for row in rows)
    return picture.mosaic([[last[row[s]] for row in rows] for s in range(seeds)])


def _row_label(sampled: Sampled, row: list[int]) -> str:
    seeds = ", ".join(str(sampled.items[i].seed) for i in row)
    prompt = sampled.items[row[0]].prompt or "(no text)"
    return f"{prompt}\nseed{'s' if len(row) > 1 else ''} {seeds}"


def page(config: EvalConfig, metrics: dict[str, Any], findings: Findings, grid_png: bytes) -> str:
    """Return the page."""
    sections = [
        _summary(metrics),
        _samples(grid_png),
        *([_per_digit(metrics), _per_phrasing(metrics)] if "digit_accuracy" in metrics else []),
        _memorisation(metrics, findings),
        _training(config),
        _origin(metrics),
        _cost(config, metrics),
        f"<details><summary>Configuration</summary><pre>{escape(dump_yaml(config))}</pre></details>",
    ]
    return whole(f"{config.name}: evaluation", sections)


def percent(value: float | None) -> str:
    """Return a share as a person reads it."""
    return "none" if value is None else f"{value:.1%}"


def _interval(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{low:.1%} to {high:.1%}"


def _summary(metrics: dict[str, Any]) -> str:
    copied = metrics["memorisation"]
    seen = list(metrics["images_seen"].values())[-1]
    tiles = []
    if "digit_accuracy" in metrics:
        accuracy, text = metrics["digit_accuracy"], metrics["text_use"]
        note = f"{_interval(accuracy)} with 95 % confidence, {accuracy['n']} images"
        tiles.append(tile("Digit accuracy", percent(accuracy["value"]), note))
        note = "what these images would score if prompts were dealt out at random"
        tiles.append(tile("Chance", percent(text["chance"]), note))
    if "ratio_of_medians" in copied:
        note = "relative to real held-out images; near 0 is copying, far above 1 is unlike any"
        value = f"{copied['ratio_of_medians']:.2f}"
        tiles.append(tile("Distance to training images", value, note))
    tiles.append(tile("Images seen", charts.short(seen), "by the last member while it trained"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _samples(grid_png: bytes) -> str:
    data = base64.b64encode(grid_png).decode()
    return (
        "<h2>Samples</h2><p>Each row is one prompt. Every group shows one seed, as each member of "
        "the cascade made it.</p>"
        f'<div class="wide"><img class="grid" alt="grid of samples, a row for each prompt" '
        f'src="data:image/png;base64,{data}"></div>'
    )


def _share_row(name: str, share: dict[str, Any], *more: str) -> list[str]:
    value = share["value"] or 0.0
    cells = [escape(name), charts.bar(value, *share["interval"]), percent(share["value"])]
    return [*cells, _interval(share), *more]


def _per_digit(metrics: dict[str, Any]) -> str:
    rows = []
    for digit, share in metrics["per_digit"].items():
        instead = ", ".join(f"{count} x {other}" for other, count in share["instead"].items())
        rows.append(_share_row(digit, share, escape(instead)))
    members = [_share_row(name, share) for name, share in metrics["members"].items()]
    judge = metrics["judge"]
    return (
        "<h2>Does it show what was asked for?</h2>"
        + table(["digit", "", "accuracy", "95 % interval", "seen instead"], rows)
        + "<h3>By member</h3>"
        + table(["member", "", "accuracy", "95 % interval"], members)
        + f"<p>{_about_judge(judge)}</p>"
    )


def _about_judge(judge: dict[str, Any]) -> str:
    told = (
        f"The judge learnt from {judge['training_images']:,} real training images. An image in "
        f"which it sees no digit with probability {judge['gate']:g} or more counts as wrong."
    )
    if "heldout_accuracy" in judge:
        real = judge["heldout_accuracy"]
        told += (
            f" On {real['n']} real images that it never saw it is right in "
            f"{percent(real['value'])} ({_interval(real)})."
        )
    return told


def _per_phrasing(metrics: dict[str, Any]) -> str:
    rows = [_share_row(name, share) for name, share in metrics["per_phrasing"].items()]
    return "<h3>By phrasing</h3>" + table(["phrasing", "", "accuracy", "95 % interval"], rows)


def _memorisation(metrics: dict[str, Any], findings: Findings) -> str:
    body = metrics["memorisation"]
    rows = [
        [name, *(f"{body[key][q]:.3f}" for q in ("least", "p05", "median", "p95"))]
        for name, key in (("samples", "samples"), ("held-out real images", "heldout"))
        if body[key]["n"]
    ]
    told = ""
    if "nearer_than_heldout" in body:
        near = body["nearer_than_heldout"]
        told = (
            f"<p>In {percent(near['value'])} of all pairs ({_interval(near)}) a sample is nearer "
            "to the training images than a held-out real image is: 50 % for new pictures of the "
            f"same world, 100 % for copies. The samples have {body['distinct_nearest']} different "
            "nearest training images.</p>"
        )
    return (
        f"<h2>Drawing or copying?</h2><p>Distance to the nearest training image: "
        f"{escape(body['measure'])}.</p>"
        + table(["", "least", "5 %", "median", "95 %"], rows)
        + told
        + f"<h3>Samples nearest to a training image, beside it</h3>{_pairs(findings)}"
    )


def _pairs(findings: Findings) -> str:
    figures = []
    for pair in findings.pairs:
        item = findings.sampled.items[pair.sample]
        said = f"{item.prompt or '(no text)'}, seed {item.seed}: {pair.distance:.3f}"
        said += _seen(findings, pair.sample)
        images = _thumbnail(findings.sampled.final[pair.sample], "sample")
        images += _thumbnail(pair.original, "nearest training image")
        figures.append(f"<figure>{images}<figcaption>{escape(said)}</figcaption></figure>")
    return f'<div class="pairs">{"".join(figures)}</div>'


def _seen(findings: Findings, i: int) -> str:
    if findings.verdicts is None:
        return ""
    seen = int(findings.verdicts[i])
    return ", no digit seen" if seen < 0 else f", seen as {seen}"


def _thumbnail(image: np.ndarray, alt: str) -> str:
    shown = picture.exact(image)
    if max(shown.size) > THUMBNAIL_PX:
        shown.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    data = base64.b64encode(picture.png(shown)).decode()
    return f'<img class="thumbnail" alt="{alt}" src="data:image/png;base64,{data}">'


def _training(config: EvalConfig) -> str:
    parts = ["<h2>Training</h2>"]
    for member in config.members:
        events = _events(config, member)
        # a resumed run logs some images again: the last word counts
        losses = {
            e["images_seen"]: e["loss"] for e in events if e.get("loss") is not None
        }  # null: not finite, or no image of the interval could be read
        if not losses:
            parts.append(f"<h3>{escape(member)}</h3><p>It has no log of losses.</p>")
            continue
        points = sorted((float(x), float(y)) for x, y in losses.items())
        chart = charts.line_chart(points, "images seen", "loss")
        parts.append(f"<h3>{escape(member)}: loss, {points[-1][1]:.4f} at last</h3>{chart}")
    return "".join(parts)


def _origin(metrics: dict[str, Any]) -> str:
    rows = [
        [escape(name), f"{metrics['images_seen'][name]:,}", escape(_code(provenance))]
        for name, provenance in metrics["provenance"].items()
    ]
    facts = [
        ["cascade", f"<code>{metrics['cascade']}</code>"],
        ["data set", f"<code>{metrics['data']}</code>"],
        ["text encoder", f"{escape(metrics['encoder']['name'])} "
         f"<code>{metrics['encoder']['fingerprint']}</code>"],
        *([key, escape(value)] for key, value in metrics["environment"].items()),
    ]  # fmt: skip
    members = table(["member", "images seen", "code version"], rows)
    return "<h2>Where it comes from</h2>" + members + table([], facts)


def _code(provenance: dict[str, Any]) -> str:
    return str(provenance.get("code_version", "unknown"))


def _cost(config: EvalConfig, metrics: dict[str, Any]) -> str:
    rows = [[f"evaluation: {escape(k)}", _clock(v)] for k, v in metrics["cost"]["seconds"].items()]
    for member in config.members:
        times = [e["time"] for e in _events(config, member) if "time" in e]
        if times:
            wall = _clock(max(times) - min(times))
            rows.append([f"training {escape(member)}, first to last line of its log", wall])
    return "<h2>Cost</h2>" + table(["part", "wall time"], rows)


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _events(config: EvalConfig, member: str) -> list[dict[str, Any]]:
    return log.read(storage.join(config.run_dir(member), "log.jsonl"))
