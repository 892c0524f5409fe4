"""Tables of the page: what is drawn right and what instead, and every figure there is."""

from html import escape
from typing import Any

from eval.charts import bar
from eval.figures import figure, figures, is_figure, told
from eval.history import Evaluation
from eval.page import folded, paragraph, section, table

SHARE_HEAD = ("accuracy", "95 % interval", "images")


def fits_text(newest: Evaluation) -> str:
    """Return the section on whether images show what was asked for, where somebody judged."""
    metrics = newest.metrics
    parts = []
    if "per_digit" in metrics:
        parts.append(_per_digit(metrics["per_digit"]))
    if "members" in metrics:
        parts.append("<h3>By member</h3>" + _shares(metrics["members"], "member"))
    if "per_phrasing" in metrics:
        parts.append("<h3>By phrasing</h3>" + _shares(metrics["per_phrasing"], "phrasing"))
    if "shapes" in metrics:
        parts.append(_shapes(metrics["shapes"]))
    if "gate" in metrics.get("judge", {}):
        parts.append(paragraph(_about_judge(metrics["judge"])))
    return section("Does it show what was asked for?", *parts)


def share_row(name: str, share: dict[str, Any], *more: str) -> list[str]:
    """Return the cells of one share: name, bar, value, interval, number of images."""
    found, how = figure(share), told("digit_accuracy")
    low, high = found.interval or (found.value or 0.0,) * 2
    cells = [escape(name), bar(found.value or 0.0, low, high), how.text(found.value)]
    return [*cells, how.interval(found.interval), f"{found.n or '':,}" if found.n else "", *more]


def _per_digit(body: dict[str, Any]) -> str:
    rows = []
    for digit, share in body.items():
        instead = ", ".join(f"{count} x {other}" for other, count in share["instead"].items())
        rows.append(share_row(digit, share, escape(instead)))
    head = ["digit", "", *SHARE_HEAD, "seen instead"]
    return table(head, rows, "accuracy by digit")


def _shares(body: dict[str, Any], what: str) -> str:
    rows = [share_row(name, share) for name, share in body.items() if is_figure(share)]
    return table([what, "", *SHARE_HEAD], rows, f"accuracy by {what}")


def _shapes(body: dict[str, Any]) -> str:
    """Return what is right about scenes: all, and with combinations that were never trained on."""
    parts = []
    for key, title in (
        ("", "Scenes"),
        ("seen", "Scenes with combinations that were trained on"),
        ("heldout", "Scenes with combinations that were never trained on"),
    ):
        part = body.get(key, {}) if key else body
        prefix = f"shapes.{key}." if key else "shapes."
        rows = [
            share_row(told(prefix + name).title.split(",")[0], share)
            for name, share in part.items()
            if is_figure(share)
        ]
        if rows:
            parts.append(f"<h3>{title}</h3>" + table(["", "", *SHARE_HEAD], rows, title))
    real = [share_row(n, s) for n, s in body.get("heldout_judge", {}).items() if is_figure(s)]
    if real:
        told_real = "The same checks on real held-out images: what a perfect model would score."
        parts.append(f"<h3>Real images</h3>{paragraph(told_real)}")
        parts.append(table(["", "", *SHARE_HEAD], real, "real images"))
    return "".join(parts)


def _about_judge(judge: dict[str, Any]) -> str:
    text = (
        f"The judge learnt from {judge['training_images']:,} real training images. An image in "
        f"which it sees no digit with probability {judge['gate']:g} or more counts as wrong."
    )
    if "heldout_accuracy" in judge:
        real, how = figure(judge["heldout_accuracy"]), told("judge.heldout_accuracy")
        text += (
            f" On {real.n} real images that it never saw it is right in {how.text(real.value)} "
            f"({how.interval(real.interval)})."
        )
    return text


def every(newest: Evaluation) -> str:
    """Return all figures of an evaluation, folded."""
    rows = []
    for key, found in figures(newest.metrics).items():
        how = told(key)
        better = how.better or ""
        n = "" if found.n is None else f"{found.n:,}"
        cells = [how.title, how.text(found.value), how.interval(found.interval), n, better]
        rows.append([*map(escape, cells), f"<code>{escape(key)}</code>"])
    head = ["figure", "value", "95 % interval", "n", "better", "in metrics.json"]
    return folded("Every figure", table(head, rows, "every figure")) if rows else ""
