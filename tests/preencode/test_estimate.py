"""What a dry run says, held against what a run then does."""

import re
from pathlib import Path

import pytest

from imagen.config import build
from imagen.data.tars import write_tar
from imagen.errors import ConfigError
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
    ours = {"event": "shard", "encoder": driver.make_job(config).fingerprint, "device": "cuda"}
    with log.JsonLog(driver.log_path(config)) as events:
        events.write(**ours, tokens=600, encode_s=2.0)
        events.write(**ours, tokens=0, encode_s=0.0)  # it was indexed only
        events.write(**{**ours, "encoder": "another"}, tokens=10**9, encode_s=1.0)
        events.write(**{**ours, "device": "cpu"}, tokens=10**9, encode_s=1.0)
    found = said(config)
    assert "GPU-hours in the encoder, at 300 tokens/s an actor (of 1 shards in the log)" in found
    assert "with all actors" in found


def test_a_measurement_for_gpus_on_a_machine_without_is_refused(plain, tars):
    with pytest.raises(ConfigError, match=r"which has no GPU(.|\n)*hint: run it where"):
        said(plain(tars(1, 3), preencode={"gpus_per_actor": 1}), measure=True)


def test_a_damaged_first_tar_does_not_keep_the_others_from_being_judged(plain, tars):
    folder = tars(3, 25)
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    assert "to encode       3 shards" in said(plain(folder))


def test_tars_that_changed_are_counted_as_what_may_have_to_be_encoded(plain, tars, sample):
    from imagen.text.encoder import load_encoder
    from preencode import shard

    config = plain(tars(2, 5))
    job, found = driver.make_job(config), driver.importing.list_tars(config)
    encoder = load_encoder(config.text)
    for tar in found:
        shard.process(job, tar, lambda: encoder)
    assert "to encode       0 shards" in said(config)
    Path(found[0].path).write_bytes(write_tar([sample("x", "another")]))
    told = said(config)
    assert "to index        1 shards" in told
    assert "to encode       0 shards, and of 1 more those whose captions changed" in told
    assert "embeddings      about" in told


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
