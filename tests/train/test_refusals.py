"""What a run is refused for, before a worker is started: what is wrong, where, and a way out."""

import importlib.util
import os
import shutil
from pathlib import Path

import fsspec
import gcsfs.retry
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from imagen import config as configs
from imagen import manifest, snapshot, storage
from imagen.errors import ConfigError, ImagenError, ShardError, StorageError
from train import stage
from train.config import TrainStageConfig
from train.initial import random as new_network


def refused(config: TrainStageConfig, error: type[ImagenError], text: str) -> str:
    """Check that a run is refused before Ray is started; return the hint."""
    with pytest.raises(error, match=text) as raised:
        stage.run(config, "base", address="127.0.0.1:1")  # where nobody answers
    assert raised.value.hint
    return raised.value.hint


def test_a_batch_that_lanes_do_not_share_evenly_is_refused(helpers):
    for batch in (4, 12):
        with pytest.raises(ConfigError, match=f"global_batch {batch} is no multiple of lanes 8"):
            helpers.make_config("x", global_batch=batch, lanes=8)


def test_embeddings_of_another_encoder_are_refused(helpers, project: str):
    tree = configs.to_tree(helpers.make_config(project))
    tree["text"]["max_tokens"] = 32
    hint = refused(
        configs.build(TrainStageConfig, tree), ShardError, "of another encoder.*max_tokens 16"
    )
    assert "python -m preencode" in hint


def test_missing_embeddings_of_some_shards_are_refused(helpers, project: str):
    path = f"{project}/embeddings/{'0' * 16}/manifest.json"
    body = manifest.read(path, "embedding-set")
    body["shards"] = body["shards"][:1]
    manifest.write(path, "embedding-set", body)
    hint = refused(helpers.make_config(project), ShardError, "lack 2 of 3 shards: 00001, 00002")
    assert "python -m preencode" in hint


def test_tars_that_were_replaced_or_are_gone_are_refused(helpers, project: str):
    config = helpers.make_config(project)
    tar = Path(project, "data", "00001.tar")
    before = tar.read_bytes()
    tar.write_bytes(before + bytes(512))
    hint = refused(
        config, ShardError, rf"1 of 3 tars have changed.*00001\.tar: {len(before) + 512} b"
    )
    assert "python -m preencode" in hint
    tar.unlink()
    hint = refused(config, ShardError, r"1 of 3 tars are gone.*00001\.tar")
    assert "bring them back" in hint


def test_a_tar_that_was_written_again_in_the_same_size_is_refused(helpers, project: str):
    path = f"{project}/index/manifest.json"
    body = manifest.read(path, "dataset")
    for shard in body["shards"]:
        tar = f"{project}/data/{shard['name']}.tar"
        shard["tar_version"] = storage.version(tar)
    manifest.write(path, "dataset", body)
    config = helpers.make_config(project)
    stage.check(config, "base")
    os.utime(f"{project}/data/00002.tar", ns=(0, 0))
    refused(config, ShardError, r"1 of 3 tars have changed.*00002\.tar: written again")


def test_a_cache_too_small_for_the_disk_is_refused(helpers, project: str, tmp_path, monkeypatch):
    remote = f"memory://refusals{tmp_path}"
    for path in Path(project).rglob("*"):
        if path.is_file():
            storage.put(f"{remote}/{path.relative_to(project)}", path.read_bytes())
    config = helpers.make_config(remote)
    monkeypatch.setattr("imagen.data.shard_cache.ShardCache.room_bytes", lambda _: 10)
    hint = refused(config, ConfigError, "cache_gb 50 lets copies .* room for .* in `")
    assert "lower cache_gb" in hint


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_run_directory_without_permission_is_refused(helpers, project: str):
    Path(project).chmod(0o500)
    hint = refused(helpers.make_config(project), StorageError, "permission denied")
    assert "permissions of the folder" in hint


def test_a_run_directory_that_cannot_be_made_is_refused(helpers, project: str):
    Path(project, "base").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write `.*/base/"):
        stage.run(helpers.make_config(project), "base", address="127.0.0.1:1")


class Forbidden(MemoryFileSystem):
    """A bucket that may be read and not written, as local permissions say it."""

    protocol = "forbidden"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):  # noqa: ARG002
        raise PermissionError(13, "denied", path)


class Gcs403(Forbidden):
    """The same as GCS says it."""

    protocol = "gcs403"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):  # noqa: ARG002
        raise gcsfs.retry.HttpError({"code": 403, "message": "no storage.objects.create access"})


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Forbidden, "permission denied"), (Gcs403, "HttpError: .*storage.objects.create")],
)
def test_a_bucket_without_permission_is_refused(helpers, project: str, tmp_path, kind, text):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    place = f"{kind.protocol}://bucket{tmp_path}"
    for path in Path(project).rglob("*"):
        if path.is_file():
            where = f"bucket{tmp_path}/{path.relative_to(project)}"
            MemoryFileSystem().pipe_file(where, path.read_bytes())
    hint = refused(helpers.make_config(place), StorageError, f"cannot write `{place}.*{text}")
    assert "credentials of the bucket" in hint


def test_a_snapshot_of_another_architecture_is_refused(helpers, project: str):
    config = helpers.make_config(project)
    other = helpers.changed(config, "base", network={"cond_dim": 32}).members["base"]
    net = new_network(other.network, 0)
    snapshot.save(f"{project}/other", "base", other, net.state_dict(), {"images_seen": 8})
    config = helpers.make_config(project, init_from=f"{project}/other")
    hint = refused(config, ConfigError, "another architecture.*cond_dim: was 32, is 16")
    assert "choose another snapshot" in hint


def test_curves_for_a_package_that_is_missing_are_refused(helpers, project: str, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "wandb" else find(n))
    hint = refused(helpers.make_config(project, wandb="mine"), ConfigError, "wandb is 'mine', but")
    assert "pip install imagen-cascade[wandb]" in hint


def test_a_name_that_cannot_be_accepted_is_refused(helpers, project: str):
    with pytest.raises(ConfigError, match="lanse"):
        stage.check(helpers.make_config(project), "base", accept=("lanse",))


def test_an_index_that_is_gone_is_refused(helpers, project: str):
    shutil.rmtree(f"{project}/index")
    hint = refused(helpers.make_config(project), ShardError, "no finished index")
    assert "python -m preencode" in hint
