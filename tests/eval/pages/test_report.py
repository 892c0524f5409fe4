import base64
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval import history, report
from eval.config import GridConfig
from eval.prompts import Item
from eval.report import images, samples, trends
from eval.report.page import page
from eval.report.writing import lines
from eval.score import Sampled
from imagen import picture, storage
from imagen.errors import StorageError

VOID = ("meta", "img", "link", "input", "br")


class Reader(HTMLParser):
    """Collects what a page would fetch, and checks that tags nest."""

    def __init__(self, html):
        super().__init__()
        self.fetched, self.open, self.ids, self.links = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            assert given["alt"], "an image without a text"
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("src", "href", "srcset", "data"):
            value = given.get(name, "data:")
            if value.startswith("#"):
                self.links.append(value[1:])
            elif not value.startswith("data:"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def of(config):
    return page(history.load(config))


@pytest.fixture
def copied(tiny, run, tmp_path):
    """The project of `run`, in a folder of the test's own."""
    shutil.copytree(run.out, tmp_path / "out")
    return tiny.make_config(tmp_path / "out")


@pytest.fixture(scope="module")
def html(run):
    return of(run)


def test_the_page_is_whole_and_fetches_nothing(html):
    reader = Reader(html)
    assert reader.fetched == []
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.links
    assert set(reader.links) <= set(reader.ids)
    assert "url(" not in html


def test_the_page_says_the_newest_figures_and_how_they_have_changed(html):
    assert "90.0%" in html
    assert "80.0% to 100.0% (95 %), 20 images" in html
    # right: 12 of 20 before, 18 now, of the same prompts and seeds
    assert "+30.0 points since 1,280 images: better" in html
    for text in ("1.07", "3 x 1", "1,920 images seen (base 1,920, sr1 1,920)", "7.2 s"):
        assert text in html


def test_a_change_that_chance_makes_is_called_so(tiny, leave, tmp_path):
    config = tiny.make_config(tmp_path)
    for n, accuracy in ((640, 0.5), (1280, 0.55)):
        for member in config.members:
            tiny.write_snapshot(config, member, n, seed=n)
        leave.finish(config, dict.fromkeys(config.members, n), accuracy)
    assert "+5.0 points since 640 images, within chance" in of(config)


def test_the_page_has_a_grid_for_every_checkpoint_and_shows_the_newest(html):
    assert html.count("data-label=") == 3
    assert html.count(" hidden>") == 3  # two grids, and the slider until its script runs
    assert html.index('data-label="640 images') < html.index('data-label="1,920 images')


def test_sections_that_do_not_apply_are_absent(tiny, leave, tmp_path, html):
    for title in ("What the settings do", "Does it show", "Evaluations that failed", "Progress"):
        assert title in html
    config = tiny.make_config(tmp_path)
    tiny.write_snapshot(config, "base")
    leave.finish(config, {"base": 640}, accuracy=None)
    alone = of(config)
    for title in ("What the settings do", "Does it show", "Evaluations that failed", "Progress"):
        assert title not in alone
    assert "<script" not in alone  # nothing to slide
    assert "640 images seen (base)" in alone


def test_failures_are_told_and_cannot_inject_html(html):
    assert "000000002560-abc" in html
    assert "the &lt;disk&gt; was full" in html
    assert "2023-11-14 22:13 UTC" in html


def test_curves_and_sweeps_are_drawn(html):
    for title in (
        "Digit accuracy by member",
        "base: training loss",
        "sr1: validation loss",
        "base: validation loss by noise level",
        "Fréchet distance against accuracy, a point for each guidance scale",
        "Accuracy by sampler",
    ):
        assert title in html
    for curve in ("averaged weights", "raw weights", "without captions", "captions shuffled"):
        assert curve in html
    assert "grid of samples: a row for each prompt, a column for each value of sampler" in html


def test_the_training_curve_is_of_the_log_and_the_last_word_counts(copied):
    path = f"{copied.run_dir('base')}/log.jsonl"
    log = storage.get(path) + b'{"time": 1020, "images_seen": 640, "loss": 0.125}\n'
    storage.put(path, log + b'{"time": 1021, "images_seen": 672, "loss": null}\n{"torn')
    storage.delete(f"{copied.run_dir('sr1')}/log.jsonl")
    html = of(copied)
    assert "0.125 at last" in html
    assert "It has no log of losses." in html
    assert not re.search(r"[\"\s,]nan\b", html)


def test_metrics_jsonl_has_a_line_for_each_evaluation_by_images_seen(run):
    found = [json.loads(line) for line in lines(history.load(run)).splitlines()]
    assert [line["images_seen"]["sr1"] for line in found] == [640, 1280, 1920]
    assert [line["figures"]["digit_accuracy"]["value"] for line in found] == [0.2, 0.6, 0.9]


def test_writing_twice_gives_the_same_bytes_and_nothing_without_evaluations(copied, tiny, tmp_path):
    report.write(copied)
    first = [storage.get(f"{copied.evals}/{name}") for name in ("report.html", "metrics.jsonl")]
    report.write(copied)
    assert first == [
        storage.get(f"{copied.evals}/{name}") for name in ("report.html", "metrics.jsonl")
    ]
    empty = tiny.make_config(tmp_path / "empty")
    report.write(empty)
    assert storage.listdir(empty.evals) == []


def test_an_evaluation_that_finishes_meanwhile_is_in_the_report(copied, leave, monkeypatch):
    from eval.report import writing

    for member in copied.members:
        shutil.copytree(
            f"{copied.run_dir(member)}/snapshots/{1920:012d}",
            f"{copied.run_dir(member)}/snapshots/{2560:012d}",
        )
    drawn = []

    def another(found):
        if not drawn:
            leave.finish(copied, dict.fromkeys(copied.members, 2560), 0.95)
        drawn.append(len(found.evaluations))
        return page(found)

    monkeypatch.setattr(writing, "page", another)
    report.write(copied)
    assert drawn == [3, 4]
    assert b"2,560 images seen" in storage.get(f"{copied.evals}/report.html")


def test_an_evaluation_with_other_settings_breaks_no_curve_but_is_listed(copied, tiny, leave):
    other = tiny.make_config(copied.out, guidance_scale=3.0)
    leave.finish(other, dict.fromkeys(copied.members, 1920), 0.1)
    html = of(copied)
    assert "Evaluated in another way" in html
    assert "guidance_scale: 3.0" in html
    assert html.count("data-label=") == 3
    theirs = of(other)  # by these settings there is one evaluation
    assert theirs.count("data-label=") == 1


@pytest.mark.parametrize("file", ["metrics.json", "grid.png", "nearest.png"])
def test_a_damaged_evaluation_is_left_out_and_named(copied, leave, capsys, file):
    newest = history.load(copied).newest
    leave.damage(newest.folder, file)
    report.write(copied)
    html = storage.get(f"{copied.evals}/report.html").decode()
    assert "Evaluations that are damaged" in html
    assert f"{file}` has" in html
    assert "60.0%" in html  # of the one before
    assert len(storage.get(f"{copied.evals}/metrics.jsonl").splitlines()) == 2
    said = capsys.readouterr().err
    assert newest.name in said
    assert "its manifest says" in said


def test_a_file_that_is_gone_is_damage_and_a_store_that_fails_is_none(copied, monkeypatch):
    newest = history.load(copied).newest
    storage.delete(f"{newest.folder}/metrics.json")
    assert [one.key[0] for one in history.load(copied).damaged] == [newest.name]

    def fail(path):
        raise StorageError(f"`{path}`: the store does not answer")

    monkeypatch.setattr(storage, "get", fail)
    with pytest.raises(StorageError, match="does not answer"):
        report.write(copied)


def test_with_nothing_but_damage_the_page_stays_as_it_was(copied, leave, capsys):
    for one in history.load(copied).evaluations:
        leave.damage(one.folder, "metrics.json")
    report.write(copied)
    assert capsys.readouterr().err.count("leaves out a damaged evaluation") == 3
    assert not storage.exists(f"{copied.evals}/report.html")


def test_a_report_reads_each_file_once_and_looks_up_none(copied, monkeypatch):
    read, get = Counter(), storage.get

    def counted(path):
        read[path] += 1
        return get(path)

    def look_up(path):
        raise AssertionError(f"`{path}` is looked up by itself")

    monkeypatch.setattr(storage, "get", counted)
    monkeypatch.setattr(storage, "exists", look_up)
    report.write(copied)
    evals = {path: n for path, n in read.items() if path.startswith(copied.evals)}
    assert {n for path, n in evals.items() if path.endswith("manifest.json")} == {2}  # seen again
    assert {n for path, n in evals.items() if not path.endswith("manifest.json")} == {1}
    beside = {n for path, n in read.items() if "/validation/" in path or path.endswith(".jsonl")}
    assert beside == {1}


def test_an_evaluation_that_finished_after_all_is_no_failure(copied):
    newest = history.load(copied).newest
    note = json.dumps({"tries": 1, "reason": "a passing cloud", "time": 1.0}).encode()
    storage.put(f"{copied.evals}/failed/{newest.name}.json", note)
    assert [one.name for one in history.load(copied).failures] == ["000000002560-abc"]


def test_an_evaluation_without_its_manifest_is_not_there(copied):
    (newest,) = [n for n in storage.listdir(copied.evals) if n.startswith("000000001920")]
    storage.delete(f"{copied.evals}/{newest}/manifest.json")
    found = history.load(copied)
    assert [one.at for one in found.evaluations] == [640, 1280]


def sampled(prompts):
    rng = np.random.default_rng(0)
    members = {
        name: [rng.integers(0, 256, (side, side, 1), dtype=np.uint8) for _ in prompts]
        for name, side in (("base", 8), ("sr1", 32))
    }
    return Sampled([Item(p, 10 + i) for i, p in enumerate(prompts)], members)


def test_a_grid_shows_members_side_by_side_for_each_seed():
    found = sampled(["a", "b", "a", "b"])
    shown = images.grid(found, GridConfig(prompts=2, seeds=2))
    one = images.grid(found, GridConfig(prompts=1, seeds=1))
    assert shown.width > one.width + 2 * 96
    assert shown.height > one.height + 96


def test_a_page_shows_at_most_24_checkpoints_with_the_first_and_the_newest():
    for count in (1, 2, 24, 25, 100):
        found = samples.chosen(list(range(count)))
        assert len(found) == min(count, 24)
        assert (found[0], found[-1]) == (0, count - 1)
        assert sorted(set(found)) == found


def test_a_picture_in_the_page_is_as_wide_as_allowed_and_not_larger_than_its_png():
    rng = np.random.default_rng(0)
    for pixels, kept in (
        (np.zeros((90, 300, 3), np.uint8), 200),
        (np.zeros((9, 30, 1), np.uint8), 30),
    ):
        data = picture.png(picture.exact(pixels))
        small = images.smallest(data, 200)
        assert Image.open(io.BytesIO(small)).width == kept
        assert len(small) <= len(data)
    noise = picture.png(picture.exact(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    assert len(images.smallest(noise, 64)) < len(noise) / 2  # not as PNG


def test_a_picture_that_a_format_cannot_hold_takes_another_and_none_is_endlessly_high():
    rows = np.arange(17000, dtype=np.uint8)[:, None, None].repeat(30, axis=1)
    data = picture.png(picture.exact(rows))
    high = Image.open(io.BytesIO(images.smallest(data, 20_000)))  # WebP ends at 16,383 px
    assert (high.size, high.format in ("PNG", "JPEG")) == ((30, 17000), True)
    low = Image.open(io.BytesIO(images.smallest(data, 1000)))
    assert low.height == 1000 * images.TALLEST
    assert Image.open(io.BytesIO(images.smallest(data, 200))).size == (4, 2000)


def test_an_animation_that_is_too_large_is_made_smaller_or_left_out():
    rng = np.random.default_rng(0)
    frames = [picture.exact(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(4)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=[50, 60, 70, 80])
    data = out.getvalue()
    assert images.film(data, len(data)) == data
    smaller = Image.open(io.BytesIO(images.film(data, len(data) // 2)))
    assert smaller.width < 64
    assert smaller.n_frames == 4
    assert images.film(data, 100) is None


def test_pairs_are_cut_out_of_their_picture_as_they_were():
    pixels = [np.full((32, 32, 1), 10 * i, np.uint8) for i in range(4)]
    pairs = [images.Pair(0, pixels[0], pixels[1]), images.Pair(1, pixels[2], pixels[3])]
    cut = images.columns(picture.png(images.nearest(pairs)), 2)
    read = [[int(np.asarray(Image.open(io.BytesIO(data))).mean()) for data in pair] for pair in cut]
    assert read == [[0, 10], [20, 30]]


def test_open_bins_of_noise_stand_beside_their_neighbours():
    assert trends._centre([None, -10.0]) == -11.25
    assert trends._centre([-2.5, 0.0]) == -1.25
    assert trends._centre([10.0, None]) == 11.25


def test_images_in_the_page_are_real_ones(html):
    data = html.partition('class="thumbnail pixels"')[2].partition("base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
