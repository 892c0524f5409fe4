"""The pages in a real headless Chromium, which may reach no network."""

import os
import shutil

import pytest

from eval import compare as comparing
from eval import history
from eval.comparison_page import page as comparison
from eval.report.page import page as report
from imagen import storage

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BROKEN = """() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"""
SIDEWAYS = """() => document.documentElement.scrollWidth > window.innerWidth"""


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or set $CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """The paths of both pages."""
    folder = tmp_path_factory.mktemp("pages")
    first, *_, last = [e.folder for e in history.load(run).evaluations]
    both = comparing.compare(comparing.find(first), comparing.find(last))
    for name, html in (("report", report(history.load(run))), ("compare", comparison(both))):
        (folder / f"{name}.html").write_text(html, encoding="utf8")
    return folder


@pytest.fixture
def opened(chromium, pages):
    """Open a page; what it complains of and what it tries to fetch ends up in `.trouble`."""
    contexts = []

    def open_page(name="report", viewport=DESK, **options):
        context = chromium.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.trouble = []
        page.on("console", lambda m: page.trouble.append(m.text))
        page.on("pageerror", lambda e: page.trouble.append(str(e)))
        page.on("requestfailed", lambda r: page.trouble.append(r.url))
        own = (pages / f"{name}.html").as_uri()
        allowed = ("data:", own)
        page.on(
            "request",
            lambda r: None if r.url.startswith(allowed) else page.trouble.append(r.url),
        )
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()


def shown(page):
    """Return the labels of the grids that can be seen."""
    return page.locator("[data-slider] img[data-label]:visible").evaluate_all(
        "all => all.map(i => i.dataset.label)"
    )


FIRST, MIDDLE, LAST = (f"{n} images seen (base {n}, sr1 {n})" for n in ("640", "1,280", "1,920"))


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_loads_without_network_or_complaint_and_all_images_are_decoded(opened, name):
    page = opened(name)
    page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    page.wait_for_function(f"({BROKEN})() === 0")
    assert page.locator("img").count() > 3
    assert page.trouble == []


def test_the_slider_changes_picture_and_label(opened):
    page = opened()
    slider = page.get_by_role("slider", name="checkpoint")
    assert shown(page) == [LAST]
    before = page.locator("[data-slider] .wide").screenshot()
    slider.fill("0")
    assert shown(page) == [FIRST]
    assert page.locator("output").inner_text() == FIRST
    assert slider.get_attribute("aria-valuetext") == FIRST
    assert page.locator("[data-slider] .wide").screenshot() != before
    page.get_by_role("button", name="later checkpoint").click()
    assert shown(page) == [MIDDLE]


def test_figures_of_both_and_the_verdict_fit_on_a_desk(opened):
    page = opened("compare")
    box = page.get_by_role("region", name="figures of both")
    assert box.get_by_text("more than chance, B is better").count()
    long = "Difference of an image to its own low-resolution input"  # digits' longest, and more
    box.locator("td.title").first.evaluate("(cell, text) => { cell.textContent = text }", long)
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_arrow_keys_turn_checkpoints_and_stop_at_the_ends(opened):
    page = opened()
    page.keyboard.press("ArrowLeft")
    assert shown(page) == [MIDDLE]
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert shown(page) == [FIRST]
    assert page.get_by_role("button", name="earlier checkpoint").is_disabled()
    page.get_by_role("slider", name="checkpoint").focus()
    page.keyboard.press("ArrowRight")  # the slider's own key: one step, not two
    assert shown(page) == [MIDDLE]


def test_without_scripts_the_newest_grid_is_there_and_no_dead_controls(opened):
    page = opened(java_script_enabled=False)
    visible = page.locator("[data-slider] img[data-label]:visible")
    assert visible.count() == 1
    assert visible.get_attribute("data-label") == LAST
    assert not page.get_by_role("slider").is_visible()
    assert page.get_by_text("90.0%").first.is_visible()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_is_light_by_day_and_dark_by_night(opened, name):
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(name, color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        colours[scheme] = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    assert sum(map(int, colours["light"][0][4:-1].split(", "))) > 600
    assert sum(map(int, colours["dark"][0][4:-1].split(", "))) < 150


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_does_not_scroll_sideways_on_a_phone(opened, name):
    page = opened(name, viewport=PHONE)
    page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    assert not page.evaluate(SIDEWAYS)


def test_text_can_be_told_from_its_background_by_day_and_by_night(opened):
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        assert page.evaluate(CONTRASTS) == []


CONTRASTS = """() => {
  const light = (colour) => {
    const part = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => {
      const x = Number(v) / 255;
      return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const low = [];
  for (const element of document.querySelectorAll("p, td, th, a, small, figcaption, text, h2")) {
    const style = getComputedStyle(element);
    const ink = light(element.tagName === "text" ? style.fill : style.color);
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) low.push([element.tagName, element.textContent, ratio]);
  }
  return low;
}"""


def test_the_report_is_small(pages):
    assert storage.size(f"{pages}/report.html") < 600_000
