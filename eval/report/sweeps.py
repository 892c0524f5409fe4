"""What changes with guidance, steps, sampler and low-resolution noise: grids and curves."""

from collections.abc import Iterable
from typing import Any

from eval.charts import Axes, Series, chart
from eval.figures import POINTS, Figure, Told, figure, is_figure
from eval.history import Evaluation
from eval.page import figure as titled
from eval.page import folded, image, paragraph, scrolling, section
from eval.report.images import smallest

TITLES = {
    "guidance": "Guidance scale",
    "steps": "Sampler steps",
    "samplers": "Sampler",
    "aug_level": "Noise on the low-res input",
}
WIDTH_PX = 1000
FIRST = ("accuracy", "clip", "fd")
"""Curves that are not folded away."""
QUALITY, LIKENESS = ("accuracy", "clip"), ("fd", "kid")
"""What is drawn against each other: how well images fit their text, how like real ones they are."""


def sweeps(newest: Evaluation) -> str:
    """Return the section of sweeps of one evaluation."""
    found: dict[str, list[dict[str, Any]]] = newest.metrics.get("sweeps", {})
    parts = [_sweep(newest, name, points) for name, points in found.items() if points]
    if not parts:
        return ""
    note = (
        "The first prompts again, with one setting changed and the same seeds. They are fewer "
        "images than above, so the figures are comparable among each other only."
    )
    return section("What the settings do", paragraph(note), *parts)


def _sweep(newest: Evaluation, name: str, points: list[dict[str, Any]]) -> str:
    title = TITLES.get(name, name)
    drawn = {key: _against(title, points, key) for key in _keys(points)}
    first = [_trade(points)] if name == "guidance" else []
    first += [drawn.pop(key) for key in FIRST if key in drawn]
    more = folded("More curves", _charts(drawn.values())) if drawn else ""
    return f"<h3>{title}</h3>{_grid(newest, name, title)}{_charts(first)}{more}"


def _charts(drawn: Iterable[str]) -> str:
    charts = "".join(drawn)
    return f'<div class="charts">{charts}</div>' if charts else ""


def _grid(newest: Evaluation, name: str, title: str) -> str:
    file = f"sweep-{name}.png"
    if not newest.has(file):
        return ""
    shown = smallest(newest.file(file), WIDTH_PX)
    alt = f"grid of samples: a row for each prompt, a column for each value of {title.lower()}"
    picture = scrolling(image(shown, alt, "grid"), f"grid, {title}")
    return f'<div class="scrolls">{picture}</div>'


def _keys(points: list[dict[str, Any]]) -> list[str]:
    """Return the figures that at least two values have, those that are known first."""
    keys = dict.fromkeys([*POINTS, *(key for point in points for key in point)])
    return [key for key in keys if sum(_of(point, key) is not None for point in points) > 1]


def _of(point: dict[str, Any], key: str) -> Figure | None:
    body = point.get(key)
    if body is None or not is_figure(body):
        return None
    found = figure(body)
    return None if found.value is None else found


def _told(key: str) -> Told:
    return POINTS.get(key, Told(key.replace("_", " "), None))


def _against(title: str, points: list[dict[str, Any]], key: str) -> str:
    """Return the curve of one figure over the values of a sweep."""
    how = _told(key)
    values = [point["value"] for point in points]
    names = [str(value) for value in values] if _is_named(values) else []
    places = [float(i) if names else float(value) for i, value in enumerate(values)]
    line = [(x, _of(point, key)) for x, point in zip(places, points, strict=True)]
    there = [(x, f) for x, f in line if f is not None and f.value is not None]
    curve = Series(
        name=how.title,
        points=[(x, f.value) for x, f in there if f.value is not None],
        band=[(x, *f.interval) for x, f in there if f.interval is not None],
    )
    axes = Axes(x=title.lower(), y=how.title, percent=how.percent, x_names=names)
    note = "" if how.better is None else f"{how.better} is better"
    return titled(f"{how.title} by {title.lower()}", chart([curve], axes), note)


def _is_named(values: list[Any]) -> bool:
    return any(isinstance(value, str) for value in values)


def _trade(points: list[dict[str, Any]]) -> str:
    """Return quality against likeness, a point for each guidance scale."""
    for x_key in QUALITY:
        for y_key in LIKENESS:
            both = [(p["value"], _of(p, x_key), _of(p, y_key)) for p in points]
            there = [(w, x.value, y.value) for w, x, y in both if x is not None and y is not None]
            whole = [(w, x, y) for w, x, y in there if x is not None and y is not None]
            if len(whole) > 1:
                return _trade_chart(whole, _told(x_key), _told(y_key))
    return ""


def _trade_chart(whole: list[tuple[float, float, float]], x_told: Told, y_told: Told) -> str:
    scale = 100 if x_told.percent else 1
    curve = Series(
        name="guidance",
        points=[(scale * x, y) for _, x, y in whole],
        labels=[f"{w:g}" for w, _, _ in whole],
    )
    unit = " in %" if x_told.percent else ""
    axes = Axes(x=x_told.title.lower() + unit, y=y_told.title, from_zero=False, x_from_zero=False)
    title = f"{y_told.title} against {x_told.title.lower()}, a point for each guidance scale"
    note = f"{x_told.title.lower()}: {x_told.better} is better; "
    note += f"{y_told.title}: {y_told.better} is better"
    return titled(title, chart([curve], axes), note)
