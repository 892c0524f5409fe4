import pytest

from imagen import storage
from imagen.data import embeddings, prepared
from imagen.project import absolute
from preencode import driver, importing, shard, stage
from runtime.state import lock

pytestmark = pytest.mark.slow


def encode_all(config, encoder, count=None):
    """Do what the driver does, in this process: `count` shards, then the set manifests if all."""
    c = absolute(config)
    job, tars = driver.make_job(c), importing.list_tars(c)
    for tar in tars[:count]:
        shard.process(job, tar, lambda: encoder)
    shard.ensure_encoder(job, encoder)
    if count is None:
        indexed = [shard.index_manifest(job, t) for t in tars]
        embedded = [shard.embedding_manifest(job, t.name) for t in tars]
        data = prepared.publish(job.index_dir, indexed, job.heldout)
        folder = job.embedding_dir
        embeddings.publish_set(folder, job.fingerprint, data["fingerprint"], embedded)


def test_import_goes_from_missing_to_done_and_stale(config):
    c = config("source.shards=2")
    assert stage.import_state(c).status == "missing"
    importing.run(c)
    state = stage.import_state(c)
    assert (state.status, state.detail) == ("done", "1,797 samples in 2 tar shards")
    assert stage.import_state(config("source.shards=3")).status == "stale"
    assert stage.import_state(config("source.shards=2", "seed=5")).status == "stale"
    storage.delete(importing.manifest_path(c))
    assert stage.import_state(c).status == "partial"
    with lock(c.tars):
        assert stage.import_state(c).status == "running"


def test_tars_in_place_need_no_import(config, tars, tmp_path):
    c = config(f"data.tars={tars(2, 3)}")
    assert stage.import_state(c).detail == "2 tar shards used in place"
    assert stage.import_state(config(f"data.tars={tmp_path}/nowhere")).status == "missing"


def test_encoding_goes_from_missing_over_partial_to_done(config, encoder, tars):
    c = config(f"data.tars={tars(3, 5)}")
    assert stage.encode_state(c).status == "missing"
    encode_all(c, encoder, count=2)
    state = stage.encode_state(c)
    assert (state.status, state.detail) == ("partial", "1 of 3 shards left")
    encode_all(c, encoder)
    state = stage.encode_state(c)
    assert state.status == "done"
    assert state.detail == f"15 samples, embeddings {encoder.fingerprint}"


@pytest.mark.parametrize("change", ["text.max_tokens=16", "data.heldout=0.5"])
def test_another_encoder_or_split_makes_encoding_stale(change, config, encoder, tars):
    folder = tars(2, 5)
    encode_all(config(f"data.tars={folder}"), encoder)
    state = stage.encode_state(config(f"data.tars={folder}", change))
    assert state.status == "stale"
    assert "2 of 2 shards to do" in state.detail


def test_a_tar_more_or_less_makes_encoding_stale(config, encoder, tars):
    folder = tars(3, 5)
    c = config(f"data.tars={folder}")
    encode_all(c, encoder)
    (folder / "00001.tar").rename(folder / "away")
    assert stage.encode_state(c).status == "stale"


def test_an_import_with_another_seed_is_not_what_was_encoded(config, encoder):
    c = config("source.shards=2")
    importing.run(c)
    encode_all(c, encoder)
    assert stage.encode_state(c).status == "done"
    state = stage.encode_state(config("source.shards=2", "seed=5"))
    assert state.status != "done"
    assert "no finished import" in state.detail


def test_before_the_import_encoding_is_missing(config):
    state = stage.encode_state(config())
    assert state.status == "missing"
    assert "no finished import" in state.detail
