import base64
import io
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval import charts, report
from eval.config import GridConfig
from eval.prompts import Item
from eval.score import Sampled


def sampled(prompts):
    rng = np.random.default_rng(0)
    members = {
        name: [rng.integers(0, 256, (side, side, 1), dtype=np.uint8) for _ in prompts]
        for name, side in (("base", 8), ("sr1", 32))
    }
    return Sampled([Item(p, 10 + i) for i, p in enumerate(prompts)], members)


def share(value):
    return {"value": value, "interval": [max(0, value - 0.1), min(1, value + 0.1)], "n": 20}


METRICS = {
    "images_seen": {"base": 1000, "sr1": 48_000},
    "provenance": {"base": {"code_version": "1"}, "sr1": {}},
    "cascade": "c" * 16,
    "data": "d" * 16,
    "encoder": {"name": "tiny-t5", "fingerprint": "e" * 16},
    "environment": {"torch": "2"},
    "cost": {"seconds": {"sample": 7.25}},
    "memorisation": {
        "measure": "rms",
        "samples": {"n": 2, "least": 0.1, "p05": 0.1, "median": 0.2, "p95": 0.3},
        "heldout": {"n": 2, "least": 0.1, "p05": 0.1, "median": 0.2, "p95": 0.3},
        "ratio_of_medians": 1.07,
        "nearer_than_heldout": share(0.42),
        "distinct_nearest": 2,
    },
}
JUDGED = {
    "digit_accuracy": share(0.935),
    "text_use": {"chance": 0.1},
    "members": {"base": share(0.9), "sr1": share(0.935)},
    "per_digit": {"7": share(0.85) | {"instead": {"1": 3}}},
    "per_phrasing": {"the digit {numeral}": share(0.9)},
    "judge": {"gate": 0.5, "training_images": 1700, "heldout_accuracy": share(0.99)},
}


class Outside(HTMLParser):
    """Collects what a page would fetch, and checks that tags nest."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data") and not value.startswith("data:"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(tiny, tmp_path, metrics, name="tiny <digits>"):
    images = sampled(["seven", "<b>bold</b>"])
    pairs = [report.Pair(1, 0.1, images.final[0]), report.Pair(0, 0.2, images.final[1])]
    verdicts = np.array([7, -1]) if "digit_accuracy" in metrics else None
    config = tiny.make_config(tmp_path)
    found = report.Findings(images, verdicts, pairs)
    return report.page(config, metrics, found, b"png")


def test_page_is_whole_and_fetches_nothing(tiny, tmp_path):
    reader = Outside()
    html = page(tiny, tmp_path, METRICS | JUDGED)
    reader.feed(html)
    assert reader.fetched == []
    assert reader.open == []
    assert "<script" not in html
    assert "url(" not in html


def test_page_says_the_numbers(tiny, tmp_path):
    html = page(tiny, tmp_path, METRICS | JUDGED)
    for text in ("93.5%", "83.5% to 100.0%", "3 x 1", "1.07", "48k", "c" * 16, "7.2 s"):
        assert text in html


def test_page_without_a_judge_leaves_accuracy_out(tiny, tmp_path):
    html = page(tiny, tmp_path, METRICS)
    assert "ccuracy" not in html
    assert "Drawing or copying?" in html


def test_prompts_cannot_inject_html(tiny, tmp_path):
    html = page(tiny, tmp_path, METRICS | JUDGED)
    assert "<b>bold" not in html
    assert "&lt;b&gt;bold" in html


def test_training_curve_is_of_the_log_and_the_last_word_counts(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    tiny.write_snapshot(config, "base")
    path = f"{config.run_dir('base')}/log.jsonl"
    with open(path, "a") as file:
        file.write('{"time": 2000, "images_seen": 640, "loss": 0.125}\n{"torn')
    html = page(tiny, tmp_path, METRICS)
    assert "base: loss, 0.1250 at last" in html
    assert "16 min 40 s" in html
    assert "It has no log of losses." in html  # sr1


def test_grid_shows_members_side_by_side_for_each_seed():
    images = sampled(["a", "b", "a", "b"])
    shown = report.grid(images, GridConfig(prompts=2, seeds=2))
    one = report.grid(images, GridConfig(prompts=1, seeds=1))
    assert shown.width > one.width + 2 * 96
    assert shown.height > one.height + 96


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.037), (0, 48_000), (0, 1e9), (0.2, 0.9), (0, 0)]
)
def test_ticks_are_round_and_span_the_values(low, high):
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_chart_is_valid_svg_inside_its_box():
    svg = ET.fromstring(charts.line_chart([(32.0, 0.9), (320.0, 0.2)], "images <seen>", "loss"))
    points = svg.find("polyline").get("points").split()
    xs, ys = zip(*(map(float, p.split(",")) for p in points), strict=True)
    assert xs[0] > charts.LEFT
    assert xs[-1] == charts.WIDTH - charts.RIGHT
    assert ys[0] < ys[-1] < charts.HEIGHT


def test_long_curves_are_averaged_not_cut():
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100
    assert all(abs(y - 0.5) < 0.02 for _, y in thinned)
    assert thinned[-1][0] > 9900


def test_a_loss_that_was_no_number_is_left_out_of_the_curve(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    tiny.write_snapshot(config, "base")
    with open(f"{config.run_dir('base')}/log.jsonl", "a") as file:
        file.write('{"time": 2000, "images_seen": 672, "loss": null}\n')
    html = page(tiny, tmp_path, METRICS)
    assert "base: loss, 0.0476 at last" in html
    assert "nan" not in html


def test_a_picture_that_is_no_square_keeps_its_shape_in_the_report():
    for shape, shown in (((64, 192, 3), (96, 32)), ((8, 16, 1), (16, 8))):
        html = report._thumbnail(np.zeros(shape, np.uint8), "sample")
        data = html.partition("base64,")[2].partition('"')[0]
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == shown
