"""Charts as inline SVG: no scripts, colours from the page's variables, readable when narrow.

Curves differ by colour, dashes and the shape of their points, so that colour alone tells nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 42
MOST_POINTS = 300
STYLES = 6
"""Curves of one chart that look different; more of them repeat."""

Point = tuple[float, float]
Band = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve of a chart."""

    name: str
    points: Sequence[Point]
    band: Sequence[Band] = ()
    """(x, low, high) of the interval around the curve."""
    labels: Sequence[str] = ()
    """What stands beside each point; drawn where the points are few."""
    marks: bool = True
    """Draw the points, each with its value for who points at it."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a chart is of."""

    x: str
    y: str
    from_zero: bool = True
    """Let the y axis begin at 0; else it fits the values."""
    x_from_zero: bool = True
    percent: bool = False
    """Values of y are shares."""
    x_names: Sequence[str] = ()
    """Names of x = 0, 1, 2, … where these are no numbers."""

    def told(self, y: float) -> str:
        """Return a value of y as the axis says it."""
        return f"{100 * y:.4g}%" if self.percent else short(y)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values that span [low, high], 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    count = math.ceil((high - first * step) / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(count + 1)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points: averages of equal runs of neighbours."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    runs = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def short(value: float) -> str:
    """Return a number as an axis says it: 25k, 1.5M, 0.04."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def chart(series: Sequence[Series], axes: Axes) -> str:
    """Return a chart of one or more curves with its legend, as HTML."""
    drawn = [one for one in series if one.points]
    assert drawn, "a chart shows at least one point"
    xs, ys, place = _scales(drawn, axes)
    parts = [_horizontal(place((xs[0], y))[1], axes.told(y)) for y in ys]
    parts += [_below(place((x, ys[0]))[0], _x_told(x, axes)) for x in xs if _x_told(x, axes)]
    parts += [_band(one.band, place, i % STYLES) for i, one in enumerate(drawn) if one.band]
    for i, one in enumerate(drawn):
        parts += _curve(one, axes, place, i % STYLES)
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, axes.x, "middle"))
    said = escape(_said(drawn, axes), quote=True)
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f"{''.join(parts)}</svg>"
    )
    return svg + (_legend(drawn) if len(drawn) > 1 else "")


def _said(series: Sequence[Series], axes: Axes) -> str:
    """Return a chart in words."""
    curves = [
        f"{one.name}: {axes.told(one.points[0][1])} at first, {axes.told(one.points[-1][1])} last"
        for one in series
    ]
    return f"{axes.y} against {axes.x}. {'; '.join(curves)}"


def _scales(
    series: Sequence[Series], axes: Axes
) -> tuple[list[float], list[float], Callable[[Point], Point]]:
    """Return the ticks of both axes, and what places a point between them."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ys += [y for one in series for _, low, high in one.band for y in (low, high)]
    low_y = min(0.0, *ys, 0.0) if axes.from_zero else min(ys)
    y_ticks = nice_ticks(low_y, max(ys))
    low_x = min([0.0, *xs]) if axes.x_from_zero else min(xs)
    high_x = max(xs) if max(xs) > low_x else low_x + 1.0
    if axes.x_names:
        x_ticks = [float(i) for i in range(len(axes.x_names))]
        low_x, high_x = -0.5, len(axes.x_names) - 0.5
    else:
        x_ticks = [x for x in nice_ticks(low_x, high_x) if low_x <= x <= high_x * (1 + 1e-9)]

    def place(point: Point) -> Point:
        across = (WIDTH - LEFT - RIGHT) * (point[0] - low_x) / (high_x - low_x)
        up = (HEIGHT - TOP - BOTTOM) * (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across, HEIGHT - BOTTOM - up

    return x_ticks or [low_x], y_ticks, place


def _x_told(x: float, axes: Axes) -> str:
    return axes.x_names[int(x)] if axes.x_names else short(x)


def _curve(one: Series, axes: Axes, place: Callable[[Point], Point], style: int) -> list[str]:
    points = thin(one.points) if not one.labels else list(one.points)
    placed = [place(point) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [f'<polyline class="curve s{style}" points="{path}"/>'] if len(placed) > 1 else []
    if not one.marks or len(placed) > 60:
        return [*parts, _mark(placed[-1], style, "")]
    for i, (at, point) in enumerate(zip(placed, points, strict=True)):
        label = one.labels[i] if one.labels else f"{_value(point[0], axes)} {axes.x}"
        parts.append(_mark(at, style, f"{one.name}, {label}: {axes.told(point[1])}"))
    if one.labels:
        parts += [_beside(at, one.labels[i], i % 2 == 1) for i, at in enumerate(placed)]
    return parts


def _value(x: float, axes: Axes) -> str:
    return _x_told(x, axes) if axes.x_names else short(x)


def _beside(at: Point, text: str, below: bool) -> str:
    """Return the label of a point; neighbours stand above and below in turn."""
    x, y = at
    anchor, shift = ("end", -7) if x > WIDTH - 70 else ("start", 7)
    return _text(x + shift, y + 15 if below else y - 6, text, anchor)


def _band(band: Sequence[Band], place: Callable[[Point], Point], style: int) -> str:
    if len(band) == 1:  # a whisker
        x, low, high = band[0]
        (at, bottom), (_, top) = place((x, low)), place((x, high))
        line = f'x1="{at:.1f}" x2="{at:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"'
        return f'<line class="whisker s{style}" {line}/>'
    edge = [place((x, high)) for x, _, high in band]
    edge += [place((x, low)) for x, low, _ in reversed(band)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
    return f'<polygon class="band s{style}" points="{path}"/>'


_SHAPES = (
    "M-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0",  # disc
    "M-3.2,-3.2h6.4v6.4h-6.4z",  # square
    "M0,-4.2L4,3.2H-4z",  # triangle
    "M0,-4.6L4.2,0L0,4.6L-4.2,0z",  # diamond
    "M0,4.2L4,-3.2H-4z",  # triangle, upside down
    "M-1.3,-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",  # cross
)


def _mark(at: Point, style: int, title: str) -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    moved = f"translate({at[0]:.1f},{at[1]:.1f})"
    return f'<path class="mark s{style}" transform="{moved}" d="{_SHAPES[style]}">{inner}</path>'


def _legend(series: Sequence[Series]) -> str:
    items = []
    for i, one in enumerate(series):
        line = f'<polyline class="curve s{i % STYLES}" points="0,6 30,6"/>'
        swatch = (
            f'<svg viewBox="0 0 30 12" aria-hidden="true">{line}{_mark((15, 6), i % STYLES, "")}'
        )
        items.append(f"<li>{swatch}</svg>{escape(one.name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _horizontal(y: float, label: str) -> str:
    line = f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, label, "end")


def _below(x: float, label: str) -> str:
    return _text(min(x, WIDTH - RIGHT), HEIGHT - BOTTOM + 17, label, "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def bar(value: float, low: float, high: float) -> str:
    """Return a horizontal bar of a share with its interval as a whisker."""
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="trough" width="100" height="10"/>'
        f'<rect class="fill" width="{100 * value:.2f}" height="10"/>'
        f'<rect class="whisker" x="{100 * low:.2f}" width="{100 * (high - low):.2f}" '
        'y="4" height="2"/></svg>'
    )
