import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from imagen import storage
from imagen.data.embeddings import EmbeddingSet
from imagen.data.prepared import Prepared
from imagen.errors import CheckpointError, ShardError
from preencode import prepare, prepare_shard
from train import rundir, stage
from train.config import TrainStageConfig
from train.data import Microbatch
from train.job import Inputs, Job
from train.loop import World
from train.worker import run_rank

ALONE = World(0, 1, torch.device("cpu"))


def prepared(config: TrainStageConfig) -> TrainStageConfig:
    """Return a config that trains from prepared images, after making them."""
    job, source = prepare.make_job(config)
    left = prepare.work_left(job, source.shards)
    unfinished = prepare.unfinished_members(job, source, left)
    prepare.retract(unfinished)
    for todo in left:
        prepare_shard.process(job, todo)
    prepare.finish(prepare.Result(job, len(source.shards)), source, unfinished)
    return asking(config)


def asking(config: TrainStageConfig) -> TrainStageConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, prepare=True))


def batch(config: TrainStageConfig, member: str) -> Microbatch:
    return Inputs.open(config, member).samples(config, member).__getitems__(range(8))


def test_a_member_reads_the_same_from_prepared_images(helpers, project: str):
    config = helpers.make_config(project)
    ready = prepared(config)
    for member in ("base", "sr1"):
        source, made = batch(config, member), batch(ready, member)
        assert made.keys == source.keys
        for name in set(Microbatch._fields) - {"bad", "lowres", "keys"}:
            a, b = getattr(source, name), getattr(made, name)
            assert (a is None and b is None) or torch.equal(a, b), name
    inputs = Inputs.open(ready, "base")
    assert inputs.prepared.index_dir == f"{project}/prepared/base/index"
    assert stage.check(ready, "sr1").prepared.index_dir == f"{project}/prepared/sr1/index"
    assert "8 px, prepared" in stage.describe(ready, "base")


def test_embeddings_of_the_source_join_prepared_images_by_shard_and_row(helpers, project: str):
    config = prepared(helpers.make_config(project))
    source = Prepared.open(config.index)
    made = Inputs.open(config, "base").prepared
    found = EmbeddingSet.find(config.embeddings, config.text, made)
    of_source = EmbeddingSet.find(config.embeddings, config.text, source)
    for shard, info in enumerate(source.shards):
        assert found.keys(shard).tolist() == made.keys(shard).tolist()
        for row in range(info.rows):
            assert np.array_equal(found.tokens(shard, row), of_source.tokens(shard, row))


def test_the_low_resolution_picture_is_made_from_the_prepared_one_and_differs_little(
    helpers, project: str
):
    config = helpers.make_config(project)
    large = helpers.changed(config, "sr1", size=24)  # 32 px sources: both are resized
    source, made = batch(large, "sr1").lowres, batch(prepared(large), "sr1").lowres
    assert source is not None
    assert made is not None
    difference = (source.float() - made.float()).abs()
    assert 0 < difference.mean() < 2
    assert difference.max() < 16


def test_images_that_a_member_cannot_use_have_no_weight_and_are_named_as_before(
    helpers, project: str
):
    config = helpers.changed(helpers.make_config(project), "sr1", size=64)
    a, b = (
        Inputs.open(c, "sr1").samples(c, "sr1").__getitems__(range(8))
        for c in (config, prepared(config))
    )
    assert not b.weight.any()
    assert b.bad == a.bad
    assert "smaller than 64 px" in b.bad[0].detail
    assert b.bad[0].reason == "too_small"


def test_missing_prepared_images_name_the_command_that_makes_them(helpers, project: str):
    config = asking(helpers.make_config(project))
    with pytest.raises(ShardError, match="no finished prepared images") as err:
        stage.check(config, "base")
    assert "python -m preencode prepare CONFIG" in str(err.value.hint)
    with pytest.raises(ShardError, match="no finished prepared images"):
        stage.run(config, "base")  # before any worker starts
    assert not Path(project, "base").exists()


def test_prepared_images_of_other_data_are_refused(helpers, project: str):
    config = prepared(helpers.make_config(project))
    helpers.write_data(project, (40, 31, 30))
    with pytest.raises(ShardError, match="are stale: source was") as err:
        stage.check(config, "base")
    assert "python -m preencode prepare CONFIG" in str(err.value.hint)


def test_prepared_images_of_another_size_are_refused(helpers, project: str):
    config = prepared(helpers.make_config(project))
    larger = helpers.changed(config, "sr1", size=32)
    with pytest.raises(ShardError, match=r"size was \[16, 16\], is \[32, 32\]"):
        stage.check(larger, "sr1")
    assert stage.check(larger, "base")


def test_an_index_that_is_not_the_one_of_the_manifest_is_refused(helpers, project: str):
    config = prepared(helpers.make_config(project))
    index = f"{project}/prepared/base/index/manifest.json"
    body = storage.get(f"{project}/prepared/sr1/index/manifest.json")
    storage.put(index, body.replace(b'"fingerprint": "', b'"fingerprint": "0'))
    with pytest.raises(ShardError, match=r"is another one than `prepared\.json` says"):
        stage.check(config, "base")


def test_a_run_is_not_continued_with_other_pixels_but_its_data_stays_the_sources(
    helpers, project: str
):
    config = helpers.make_config(project, images=16, snapshot_every=16)
    run_rank(Job(config, "base", "one"), ALONE)
    longer = helpers.make_config(project, images=32)
    with pytest.raises(CheckpointError, match="prepared images: was None, is 1"):
        stage.check(prepared(longer), "base")
    assert "prepared images: was None" in stage.state(prepared(config), "base").detail

    other = prepared(dataclasses.replace(config, seed=5))
    run_rank(Job(other, "sr1", "one"), ALONE)
    body = rundir.finished(config.run_dir("sr1"))
    assert body is not None
    assert body["identity"]["prepared images"] == 1
    assert body["identity"]["data fingerprint"] == Prepared.open(config.index).fingerprint


def test_a_run_of_before_there_were_prepared_images_can_be_continued(helpers, project: str):
    identity = Inputs.open(helpers.make_config(project), "base").identity
    stored = {key: value for key, value in identity.items() if key != "prepared images"}
    assert rundir.known_identity(stored) == identity
