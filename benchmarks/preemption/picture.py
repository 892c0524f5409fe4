"""The picture of the simulation: three charts, drawn as the evaluation's report draws its own."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.preemption import report
from benchmarks.preemption.report import FACTORS, LIFETIMES_H, PRICE, Results, Shown, living
from eval.charts import Axes, Series, chart

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
WIDTH = 1180
STYLE = """
body { max-width: none; margin: 0; padding: 18px 22px; }
main { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px 22px; }
h1 { font-size: 19px; margin: 0 0 2px; } h2 { font-size: 15px; margin: 0 0 2px; }
p { margin: 0 0 12px; font-size: 14px; max-width: none; } .legend { font-size: 13px; }
"""
SHOWN = ("ours", "elastic, asks", "fixed, asks", "elastic", "fixed")


def line(name: str, points: list[Shown]) -> Series:
    """Return a curve over named places, with the range of the seeds."""
    return Series(
        name=name,
        points=[(float(x), shown.mean) for x, shown in enumerate(points)],
        band=[(float(x), shown.low, shown.high) for x, shown in enumerate(points)],
    )


def by_lifetime(results: Results) -> str:
    """Return goodput against the lifetime of machines."""
    curves = [
        line(report.NAMES[way], [results.goodput(way, living(h)) for h in LIFETIMES_H])
        for way in SHOWN
    ]
    names = [f"{hours} h" for hours in LIFETIMES_H]
    axes = Axes(x="mean lifetime of a spot machine", y="goodput", percent=True, x_names=names)
    return chart(curves, axes)


def by_cost(results: Results) -> str:
    """Return the price of a useful hour against the lifetime of machines."""
    curves = []
    for way in SHOWN:
        costs = [results.cost(way, living(hours)) for hours in LIFETIMES_H[1:]]
        curves.append(line(report.NAMES[way], costs))
    calm = Shown(1.0, 1.0, 1.0)
    curves.append(line(report.NAMES["calm"], [calm] * len(LIFETIMES_H[1:])))
    names = [f"{hours} h" for hours in LIFETIMES_H[1:]]
    return chart(curves, Axes(x="mean lifetime of a spot machine", y="cost", x_names=names))


def by_factor(results: Results) -> str:
    """Return goodput against what a start costs."""
    curves = []
    for way in (*SHOWN, "eager"):
        cases = [replace(living(1), factor=factor) for factor in FACTORS]
        curves.append(line(report.NAMES[way], [results.goodput(way, case) for case in cases]))
    names = [f"x{factor:g}" for factor in FACTORS]
    axes = Axes(x="cost of a start, x measured", y="goodput", percent=True, x_names=names)
    return chart(curves, axes)


def page(results: Results) -> str:
    """Return the picture as a page."""
    css = (Path(__file__).parents[2] / "eval" / "page.css").read_text()
    charts = {
        "Share of the paid time that is in the result": by_lifetime(results),
        f"Cost of a useful hour, spot at {PRICE:g}": by_cost(results),
        "Starts that cost more; machines live 1 h": by_factor(results),
    }
    seeds = f"range of {results.seeds} seeds" if results.seeds > 1 else "none, one seed"
    parts = [f"<section><h2>{title}</h2>{drawn}</section>" for title, drawn in charts.items()]
    return (
        f'<!doctype html><meta charset="utf-8"><style>{css}{STYLE}</style>'
        "<h1>16 workers on spot machines, more than 1,000 machines lost in each run (simulated)"
        "</h1><p>The deciding code is the real one, of this project and of Ray 2.60; a start takes "
        f"27 s as measured. Bands: {seeds}.<br>asks: a training function "
        "that asks Ray for notices and saves at one, as its documentation recommends.</p>"
        f"<main>{''.join(parts)}</main>"
    )


def draw(results: Results, path: str) -> None:
    """Write the picture as PNG; raises RuntimeError where there is no browser."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise RuntimeError("no Chromium: apt-get install chromium, or set $CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        source = Path(folder, "page.html")
        source.write_text(page(results))
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(
            viewport={"width": WIDTH, "height": 400}, device_scale_factor=2, color_scheme="light"
        )
        shown.goto(source.as_uri())
        shown.screenshot(path=path, full_page=True)
        browser.close()
