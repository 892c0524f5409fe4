"""What a dry run says, held against what a run then does."""

import re

import pytest

from imagen.config import build
from preencode import driver, estimate
from preencode.config import PreencodeConfig
from runtime import log


def said(config: PreencodeConfig, **options: bool) -> str:
    return "\n".join(estimate.plan_lines(config, **options))


@pytest.fixture
def plain(tmp_path):
    """A config without members: only tars and an encoder."""

    def make(folder, out=None, **more) -> PreencodeConfig:
        tree = {"name": "x", "out": str(out or tmp_path / "run"), "data": {"tars": str(folder)}}
        return build(PreencodeConfig, {**tree, **more})

    return make


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


def test_counts_of_tars_that_are_alike_are_right(plain, tars):
    found = said(plain(tars(4, 25)))
    assert "tar shards      4 in" in found
    assert "to index        4 shards" in found
    assert number(r"captions        about ([\d,]+),", found) == pytest.approx(100, rel=0.02)
    assert number(r"distinct in their shard, ([\d,]+) tokens", found) == pytest.approx(
        700, rel=0.02
    )


def test_bytes_are_told_for_what_is_stored_and_for_what_others_store(plain, tars):
    found = said(plain(tars(4, 25)))
    stored = number(r"embeddings      about ([\d.]+) kB as float16", found)
    padded = number(r"([\d.]+) MB with every caption padded to 128 tokens of float32", found)
    assert stored == pytest.approx(700 * 512 / 1e3, rel=0.05)
    assert padded == pytest.approx(100 * 128 * 256 * 4 / 1e6, rel=0.05)


def test_without_a_measurement_no_time_is_made_up(plain, tars):
    assert "time            not known: --measure tries the encoder" in said(plain(tars(1, 5)))


def test_a_measurement_gives_hours(plain, tars):
    found = said(plain(tars(1, 30)), measure=True)
    assert re.search(r"core-hours in the encoder, at [\d,]+ tokens/s an actor \(of 30 cap", found)


def test_the_log_of_earlier_shards_gives_hours(plain, tars):
    config = plain(tars(2, 30), preencode={"actors": 4, "gpus_per_actor": 1})
    with log.JsonLog(driver.log_path(config)) as events:
        events.write(event="shard", tokens=600, encode_s=2.0)
        events.write(event="shard", tokens=0, encode_s=0.0)  # it was indexed only
    found = said(config)
    assert "GPU-hours in the encoder, at 300 tokens/s an actor (of 1 shards in the log)" in found
    assert "with all actors" in found


def test_requests_are_told_of_a_store_alone(plain, tars):
    folder = tars(3, 5)
    assert "requests  " not in said(plain(folder))
    found = said(plain(folder, "memory://bucket/run"))
    assert "requests        33 writes and lists, 15 reads" in found


def test_a_dry_run_touches_nothing(plain, tars, tmp_path):
    config = plain(tars(2, 5))
    before = sorted(tmp_path.rglob("*"))
    said(config, measure=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_tars_are_told_with_a_hint(plain, tmp_path):
    assert "no *.tar files in" in said(plain(tmp_path))
