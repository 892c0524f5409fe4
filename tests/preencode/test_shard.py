import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagen import manifest, storage
from imagen.data import embeddings, index, prepared, tars
from imagen.errors import ShardError
from preencode import shard
from preencode.shard import Job

pytestmark = pytest.mark.slow

CAPTIONS = ["seven", "a red square", "seven", "", "word " * 40, "a red square", "blue"]


@pytest.fixture
def make_tar(sample):
    def make(path, captions=CAPTIONS, extra=()):
        parts = [sample(f"k{i}", c) for i, c in enumerate(captions)]
        storage.put(str(path), tars.write_tar([*parts, *extra]))
        return tars.Tar(str(path), storage.version(str(path)))

    return make


@pytest.fixture
def job(make_job):
    return make_job


@pytest.fixture
def finish(publish_sets):
    """Publish the set manifests of a one-shard data set and open both sides."""

    def opened(job: Job, tar: tars.Tar) -> tuple[prepared.Prepared, embeddings.EmbeddingSet]:
        publish_sets(job, tar)
        data = prepared.Prepared.open(job.index_dir)
        root = job.embedding_dir.rpartition("/")[0]
        return data, embeddings.EmbeddingSet.find(root, job.text, data)

    return opened


@pytest.mark.parametrize("place", ["local", "memory"])
def test_every_sample_gets_the_embedding_of_its_caption(
    place, job, encoder, make_tar, tmp_path, finish
):
    out = str(tmp_path) if place == "local" else f"memory://shard-{tmp_path.name}"
    tar, j = make_tar(f"{out}/data/00000.tar"), job(out)
    report = shard.process(j, tar, lambda: encoder)
    shard.ensure_encoder(j, encoder)
    assert (report.indexed, report.encoded, report.rows, report.captions) == (True, True, 7, 5)
    data, found = finish(j, tar)
    for row, caption in enumerate(CAPTIONS):
        assert data.caption(0, row) == caption.strip()
        (wanted,) = encoder.encode([caption])
        np.testing.assert_allclose(found.tokens(0, row), wanted, atol=4e-3)  # 2 ulp of fp16
    np.testing.assert_array_equal(found.keys(0), data.keys(0))
    np.testing.assert_allclose(found.null, encoder.encode([""])[0], atol=4e-3)


def test_empty_and_cut_captions_are_counted(job, encoder, make_tar, tmp_path):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    body = shard.embedding_manifest(j, "00000")
    assert body is not None
    assert (body["empty"], body["truncated"], body["lost_tokens"]) == (1, 1, 9)  # 41 to 32
    assert (body["rows"], body["captions"]) == (7, 5)
    assert body["tokens"] == 2 + 4 + 1 + 32 + 2


def test_bad_samples_are_left_out_of_index_and_embeddings_alike(job, encoder, make_tar, tmp_path):
    extra = [("bad", {"png": b"?", "txt": b"x"}), ("k0", {"png": b"", "txt": b"x"})]
    tar, j = make_tar(tmp_path / "data" / "00000.tar", extra=extra), job(tmp_path)
    report = shard.process(j, tar, lambda: encoder)
    body = shard.index_manifest(j, tar)
    assert body is not None
    assert body["bad"] == {"bad_image": 1, "duplicate_key": 1}
    assert report.rows == len(CAPTIONS)


def test_a_second_run_finds_everything_done(job, encoder, make_tar, tmp_path, contents):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    before = {p: os.stat(tmp_path / p).st_mtime_ns for p in contents(tmp_path)}
    look = shard.look(j, tar)
    assert (look.needs_index, look.needs_embeddings) == (False, False)

    def never():
        raise AssertionError("no encoder is needed")

    report = shard.process(j, tar, never)
    assert (report.indexed, report.encoded) == (False, False)
    assert {p: os.stat(tmp_path / p).st_mtime_ns for p in contents(tmp_path)} == before


@pytest.mark.parametrize("missing", ["index/00000.json", "embeddings/{fp}/00000.json"])
def test_a_stop_before_either_manifest_ends_in_the_same_bytes(
    missing, job, encoder, make_tar, tmp_path, contents
):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    whole = contents(tmp_path)
    stopped_at = missing.format(fp=encoder.fingerprint)
    data = next(p for p in whole if p.startswith(stopped_at.rpartition(".")[0]) and "npy" in p)
    (tmp_path / stopped_at).unlink()
    (tmp_path / data).write_bytes(b"torn")
    shard.process(j, tar, lambda: encoder)
    assert contents(tmp_path) == whole


def test_a_changed_encoder_only_encodes(job, encoder, make_tar, tmp_path):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    before = {e.name: e.stat().st_mtime_ns for e in os.scandir(j.index_dir)}
    other = replace(j, fingerprint="other", embedding_dir=f"{tmp_path}/embeddings/other")
    report = shard.process(other, tar, lambda: encoder)
    assert (report.indexed, report.encoded) == (False, True)
    assert {e.name: e.stat().st_mtime_ns for e in os.scandir(j.index_dir)} == before


def test_a_changed_held_out_share_only_indexes(job, encoder, make_tar, tmp_path):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    report = shard.process(replace(j, heldout=0.5), tar, lambda: encoder)
    assert (report.indexed, report.encoded) == (True, False)


def test_changed_captions_are_indexed_and_encoded_again(job, encoder, make_tar, tmp_path, finish):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    changed = make_tar(tar.path, ["other", *CAPTIONS[1:]])  # of the same size, too
    report = shard.process(j, changed, lambda: encoder)
    assert (report.indexed, report.encoded, report.rows) == (True, True, 7)
    shard.ensure_encoder(j, encoder)
    data, _ = finish(j, changed)
    assert data.caption(0, 0) == "other"


def test_changed_images_are_indexed_again_and_captions_not_encoded(job, encoder, tmp_path, sample):
    path, j = f"{tmp_path}/data/00000.tar", job(tmp_path)
    parts = [sample(f"k{i}", c) for i, c in enumerate(CAPTIONS)]
    for change in (b"", b"\0" * 3000):
        changed = [(k, {**files, "png": files["png"] + change}) for k, files in parts]
        storage.put(path, tars.write_tar(changed))
        tar = tars.Tar(path, storage.version(path))
        report = shard.process(j, tar, lambda: encoder)
    assert (report.indexed, report.encoded) == (True, False)


def test_a_tar_whose_change_its_version_does_not_show_is_an_error(job, encoder, make_tar, tmp_path):
    tar, j = make_tar(tmp_path / "data" / "00000.tar"), job(tmp_path)
    shard.process(j, tar, lambda: encoder)
    make_tar(tar.path, ["eight", *CAPTIONS[1:]])
    Path(index.manifest_path(j.embedding_dir, "00000")).unlink()
    with pytest.raises(
        ShardError, match=r"has changed since it was indexed\n\nhint: delete `.*json`"
    ):
        shard.process(j, tar, lambda: encoder)


def test_the_encoder_manifest_is_written_once(job, encoder, tmp_path):
    j = job(tmp_path)
    shard.ensure_encoder(j, encoder)
    body = manifest.read(f"{j.embedding_dir}/encoder.json", "encoder")
    assert (body["fingerprint"], body["dim"]) == (encoder.fingerprint, 256)
    before = os.stat(f"{j.embedding_dir}/encoder.json").st_mtime_ns
    shard.ensure_encoder(j, encoder)
    assert os.stat(f"{j.embedding_dir}/encoder.json").st_mtime_ns == before
