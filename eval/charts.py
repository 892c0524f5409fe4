"""Charts as inline SVG: no scripts, colours from the page's variables, readable when narrow."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
MOST_POINTS = 400

Point = tuple[float, float]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values that span [low, high], 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        high = low + 1.0
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


def line_chart(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Return a chart of one curve with positive x and y; both axes start at 0."""
    points = thin(points)
    end = max(x for x, _ in points)
    xs = [x for x in nice_ticks(0, end) if x <= end]
    ys = nice_ticks(0, max(y for _, y in points))

    def place(x: float, y: float) -> Point:
        across = (WIDTH - LEFT - RIGHT) * x / end
        return LEFT + across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / ys[-1]

    parts = [_horizontal(place(0, y)[1], short(y)) for y in ys]
    parts += [_below(place(x, 0)[0], short(x)) for x in xs]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(x, y) for x, y in points))
    parts.append(f'<polyline class="curve" points="{path}"/>')
    last = place(*points[-1])
    parts.append(f'<circle class="end" cx="{last[0]:.1f}" cy="{last[1]:.1f}" r="3.5"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 6, x_label, "middle"))
    said = f"{y_label} against {x_label}: {points[0][1]:.4g} at first, {points[-1][1]:.4g} at last"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(said, quote=True)}">{"".join(parts)}</svg>'
    )


def _horizontal(y: float, label: str) -> str:
    line = f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, label, "end")


def _below(x: float, label: str) -> str:
    return _text(x, HEIGHT - BOTTOM + 18, label, "middle")


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
