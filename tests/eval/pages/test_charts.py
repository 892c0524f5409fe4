import xml.etree.ElementTree as ET

import numpy as np
import pytest

from eval import charts
from eval.charts import Axes, Series, chart

SEEN = Axes(x="images <seen>", y="loss")


def parse(html):
    return ET.fromstring(f"<div>{html}</div>")


def placed(element):
    return [tuple(map(float, p.split(","))) for p in element.get("points").split()]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.037), (0, 48_000), (0, 1e9), (0.2, 0.9), (0, 0), (5, 5)]
)
def test_ticks_are_round_and_span_the_values(low, high):
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_a_chart_is_valid_svg_inside_its_box():
    found = parse(chart([Series(name="loss", points=[(32.0, 0.9), (320.0, 0.2)])], SEEN))
    (first, last) = placed(found.find(".//polyline"))
    assert first[0] > charts.LEFT
    assert last[0] == charts.WIDTH - charts.RIGHT
    assert first[1] < last[1] < charts.HEIGHT


def test_a_band_spans_its_interval_around_the_curve():
    points = [(0.0, 0.5), (10.0, 0.6)]
    band = [(x, y - 0.1, y + 0.2) for x, y in points]
    found = parse(chart([Series(name="a", points=points, band=band)], SEEN))
    corners = placed(found.find(".//polygon"))
    curve = placed(found.find(".//polyline"))
    above, below = curve[0][1] - corners[0][1], corners[-1][1] - curve[0][1]
    assert above == pytest.approx(2 * below, abs=0.2)


def test_curves_differ_by_more_than_colour():
    series = [Series(name=f"curve {i}", points=[(0.0, i), (1.0, i)]) for i in range(3)]
    found = parse(chart(series, SEEN))
    legend = ["".join(item.itertext()) for item in found.findall(".//li")]
    assert legend == ["curve 0", "curve 1", "curve 2"]
    assert len({mark.get("d") for mark in found.findall(".//li//path")}) == 3


def test_a_point_says_its_value_to_who_points_at_it():
    found = parse(
        chart([Series(name="acc", points=[(1000.0, 0.25)])], Axes(x="n", y="", percent=True))
    )
    assert found.find(".//path/title").text == "acc, 1k n: 25%"


def test_a_chart_is_told_in_words():
    html = chart([Series(name="a & b", points=[(1.0, 0.9), (2.0, 0.2)])], SEEN)
    told = parse(html).find("svg").get("aria-label")
    assert told == "loss against images <seen>. a & b: 0.9 at first, 0.2 last"


def test_values_that_are_no_numbers_have_names_on_the_axis():
    axes = Axes(x="sampler", y="accuracy", x_names=("ddim", "heun"))
    found = parse(chart([Series(name="a", points=[(0.0, 1.0), (1.0, 2.0)])], axes))
    assert {"ddim", "heun"} <= {text.text for text in found.findall(".//text")}


def test_long_curves_are_averaged_not_cut():
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100
    assert all(abs(y - 0.5) < 0.02 for _, y in thinned)
    assert thinned[-1][0] > 9900
