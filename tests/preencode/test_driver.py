import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import config as configs
from imagen import storage
from imagen.data.embeddings import EmbeddingSet
from imagen.data.prepared import Prepared
from imagen.data.tars import write_tar
from imagen.errors import ConfigError, ShardError, StorageError
from imagen.text.encoder import load_encoder
from preencode import dispatch, driver, importing, report, shard, stage
from preencode.actor import EncodeActor
from preencode.config import PreencodeConfig
from runtime import log, state

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "pipeline" / "configs" / "digits.yaml")


def start(cluster: str, out: Path, tars: Path) -> subprocess.Popen:
    """Start the stage in a process of its own that joins the cluster."""
    words = [CONFIG, f"out={out}", f"data.tars={tars}", "--address", cluster]
    return subprocess.Popen(
        [sys.executable, "-m", "preencode", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_shard(process: subprocess.Popen, out: Path) -> dict:
    """Wait until the first shard is done; return its event."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = [e for e in log.read(f"{out}/logs/preencode.jsonl") if e["event"] == "shard"]
        if done:
            return done[0]
        time.sleep(0.02)
    raise AssertionError(f"no shard was done in time: {process.communicate()}")


def finish(process: subprocess.Popen) -> str:
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    return stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory, cluster):
    """Eight tars with captions enough that a kill lands in mid-run, and a clean run's result."""
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "png")
    folder = tmp_path_factory.mktemp("work")
    (folder / "tars").mkdir()
    for number in range(8):
        draw = np.random.RandomState(number)
        samples = [
            (
                f"{number}{i:05d}",
                {
                    "png": image.getvalue(),
                    "txt": " ".join(f"w{w}" for w in draw.randint(0, 5000, 28)).encode(),
                },
            )
            for i in range(500)
        ]
        (folder / "tars" / f"{number:05d}.tar").write_bytes(write_tar(samples))
    finish(start(cluster, folder / "clean", folder / "tars"))
    return folder


def test_a_run_joins_every_sample_with_its_embedding(work, contents, encoder):
    out = work / "clean"
    data = Prepared.open(str(out / "index"))
    found = EmbeddingSet.find(str(out / "embeddings"), encoder.text, data)
    assert sum(s.rows for s in data.shards) == 4000
    for number, row in [(0, 0), (3, 17), (7, 499)]:
        (wanted,) = encoder.encode([data.caption(number, row)])
        np.testing.assert_allclose(found.tokens(number, row), wanted, atol=4e-3)
    assert not list(out.rglob("*.tmp-*"))


def test_a_killed_driver_is_continued_to_the_same_bytes(work, cluster, contents):
    out = work / "killed"
    process = start(cluster, out, work / "tars")
    wait_for_shard(process, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "index" / "manifest.json").exists()  # it was in mid-run
    before = len(list((out / "index").glob("*.index.npy")))
    assert before < 8
    assert "of 8 shards" in finish(start(cluster, out, work / "tars"))
    assert contents(out) == contents(work / "clean")
    starts = [e for e in log.read(f"{out}/logs/preencode.jsonl") if e["event"] == "start"]
    assert starts[0]["left"] == 8
    assert starts[1]["left"] < 8  # what was finished was not done again


def test_a_killed_actor_is_replaced_and_the_bytes_are_the_same(work, cluster, contents):
    out = work / "actor"
    process = start(cluster, out, work / "tars")
    os.kill(wait_for_shard(process, out)["pid"], signal.SIGKILL)
    assert "1 actors were lost and replaced" in finish(process)
    assert contents(out) == contents(work / "clean")
    events = log.read(f"{out}/logs/preencode.jsonl")
    assert sum(e["event"] == "actor_lost" for e in events) == 1
    done = [e for e in events if e["event"] == "shard"]
    assert len({e["pid"] for e in done}) > 1
    assert {e["host"] for e in done} == {socket.gethostname()}


def test_a_second_run_does_nothing(work, cluster, contents):
    out = work / "clean"
    before = {name: os.stat(out / name).st_mtime_ns for name in contents(out) if "npy" in name}
    assert "nothing to do: 8 shards" in finish(start(cluster, out, work / "tars"))
    assert {name: os.stat(out / name).st_mtime_ns for name in before} == before


def test_a_damaged_tar_fails_alone_and_the_rest_is_kept(config, tars, cluster, contents, tmp_path):
    folder = tars(4, 20)
    whole = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(whole[:5000])
    c = config(f"data.tars={folder}")
    result = driver.run(c, cluster)
    (failed,) = result.failed
    assert failed.endswith("00002.tar")
    assert "00002.tar` is truncated at byte 5000" in result.failed[failed].message
    told = "\n".join(report.summary_lines(result))
    assert "indexed 3 and encoded 3 of 4 shards" in told
    assert "FAILED 00002.tar" in told
    assert "fetch the tar again" in told
    assert "1 failed, the data set is incomplete" in told
    kept = contents(tmp_path / "run")
    assert {"index/00000.json", "index/00001.json", "index/00003.json"} <= set(kept)
    assert "index/manifest.json" not in kept

    (folder / "00002.tar").write_bytes(whole)
    result = driver.run(c, cluster)
    assert (result.done.shards, result.done.indexed, result.done.encoded) == (1, 1, 1)
    assert not result.failed
    again = contents(tmp_path / "run")
    assert {name: again[name] for name in kept} == kept
    assert stage.encode_state(c).status == "done"


def test_a_changed_encoder_only_encodes_beside_the_old_embeddings(
    config, work, cluster, contents, tmp_path
):
    shutil.copytree(work / "clean", tmp_path / "run")
    before = {p: os.stat(tmp_path / "run" / p).st_mtime_ns for p in contents(tmp_path / "run")}
    result = driver.run(config(f"data.tars={work}/tars", "text.max_tokens=4"), cluster)
    assert (result.done.shards, result.done.indexed, result.done.encoded) == (8, 0, 8)
    del before["index/manifest.json"]  # written again, the same
    assert {p: os.stat(tmp_path / "run" / p).st_mtime_ns for p in before} == before
    assert len(list((tmp_path / "run" / "embeddings").iterdir())) == 2
    told = "\n".join(report.summary_lines(result))
    assert "cut             4,000 captions (100.00%), 100,000 tokens lost; consider" in told


def test_an_encoder_manifest_that_is_gone_comes_back(config, work, cluster, contents, tmp_path):
    shutil.copytree(work / "clean", tmp_path / "run")
    (gone,) = (tmp_path / "run" / "embeddings").glob("*/encoder.json")
    gone.unlink()
    assert driver.run(config(f"data.tars={work}/tars"), cluster).done.shards == 0
    assert contents(tmp_path / "run") == contents(work / "clean")


def test_bad_samples_are_told_by_reason_and_urls_work(config, tmp_path, sample, cluster):
    parts = [sample(f"k{i}", f"caption {i}") for i in range(6)]
    parts += [sample("empty", ""), ("x", {"txt": b"no image"}), ("y", {"png": b"?", "txt": b"c"})]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(write_tar(parts))
    c = config(f"out=file://{tmp_path}/run", f"data.tars=file://{tmp_path}/tars")
    told = "\n".join(report.summary_lines(driver.run(c, cluster)))
    assert "left out        1 bad_image" in told
    assert "left out        1 no_image" in told
    assert "empty           1 captions" in told
    assert "too small       7 images are smaller than the largest member's 32 px" in told
    lines = (tmp_path / "run" / "index" / "a.quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"bad_image", "no_image"}


@pytest.fixture
def local_t5(tmp_path, monkeypatch):
    """A small random ByT5 in the folder `models/t5` below the current one."""
    import torch
    import transformers

    torch.manual_seed(1)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    folder = tmp_path / "models" / "t5"
    transformers.utils.logging.disable_progress_bar()
    transformers.ByT5Tokenizer().save_pretrained(folder)
    config = transformers.T5Config(vocab_size=384, **sizes)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    return "models/t5"


def test_an_encoder_in_a_relative_folder_works_and_is_found_by_its_name(
    config, tars, local_t5, cluster, tmp_path
):
    folder = tars(1, 4)
    widths = [f"members.{m}.network.text_dim=32" for m in ("base", "sr1")]
    c = config(f"data.tars={folder}", f"text.encoder={local_t5}", *widths)
    assert not driver.run(c, cluster).failed
    data = Prepared.open(c.index)
    found = EmbeddingSet.find(c.embeddings, c.text, data)
    (wanted,) = load_encoder(c.text).encode([data.caption(0, 3)])
    np.testing.assert_allclose(found.tokens(0, 3), wanted, atol=4e-3)


def test_a_missing_encoder_file_on_the_cluster_stops_the_run(config, tars, cluster):
    c = config(f"data.tars={tars(1, 3)}", "text.encoder=./no/such/folder!")
    with pytest.raises(ConfigError, match="is no folder and no name on the Hugging Face hub"):
        driver.run(c, cluster)


def test_an_actor_for_which_no_node_has_room_is_an_error_not_a_wait(config, tars, cluster):
    c = config(f"data.tars={tars(1, 3)}", "preencode.gpus_per_actor=1")
    with pytest.raises(ConfigError, match=r"no node of the Ray cluster has 1 CPU and 1 GPUs"):
        driver.run(c, cluster)


def test_actors_leave_the_encoder_manifest_to_the_one_that_is_told_to_write_it(
    config, tars, cluster
):
    import ray

    c = config(f"data.tars={tars(1, 3)}")
    job = driver.make_job(c)
    actor = EncodeActor.remote(job)  # type: ignore[attr-defined]
    for tar in importing.list_tars(c):
        _, done = ray.get(actor.process.remote(tar))
        assert (done.indexed, done.encoded) == (True, True)
    assert not storage.exists(f"{job.embedding_dir}/encoder.json")
    assert not storage.exists(f"{job.embedding_dir}/null.npy")
    _, error = ray.get(actor.publish_encoder.remote())
    ray.kill(actor)
    assert error is None
    assert storage.exists(f"{job.embedding_dir}/encoder.json")


def test_two_actors_on_one_shard_at_once_write_it_whole(config, tars, cluster, contents, tmp_path):
    """As after a driver was killed whose actors live on beside those of the next one."""
    import ray

    c = config(f"data.tars={tars(1, 400, words=20)}")
    job, (tar,) = driver.make_job(c), importing.list_tars(c)
    actors = [EncodeActor.remote(job) for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([actor.publish_encoder.remote() for actor in actors])
    both = ray.get([actor.process.remote(tar) for actor in actors])
    assert [report.rows for _, report in both] == [400, 400]
    together = contents(tmp_path / "run")
    for name in ("index", "embeddings"):
        shutil.rmtree(tmp_path / "run" / name)
    ray.get(actors[0].publish_encoder.remote())
    ray.get(actors[0].process.remote(tar))
    for actor in actors:
        ray.kill(actor)
    assert contents(tmp_path / "run") == together
    assert not list((tmp_path / "run").rglob("*.tmp-*"))


def test_two_runs_in_one_folder_are_refused(config, tars, cluster):
    c = config(f"data.tars={tars(1, 3)}")
    with (
        state.lock(c.index),
        pytest.raises(StorageError, match=rf"in use by process {os.getpid()}"),
    ):
        driver.run(c, cluster)


def test_a_disk_that_fails_is_tried_three_times_and_reported(config, tars, cluster, monkeypatch):
    monkeypatch.setattr(dispatch, "PAUSES_S", (0.1, 0.1))
    c = config(f"data.tars={tars(2, 3)}")
    job = driver.make_job(c)
    taken = Path(job.embedding_dir, "00000.tokens.npy")
    taken.mkdir(parents=True)  # a folder stands where the file should
    result = driver.run(c, cluster)
    ((failed, error),) = result.failed.items()
    assert Path(failed).name == "00000.tar"
    assert isinstance(error, StorageError)
    assert (result.retried, result.done.shards) == (2, 1)
    told = "\n".join(report.summary_lines(result))
    assert "2 times reading or writing failed and was tried again" in told
    assert "Is a directory" in told
    assert not list(Path(job.embedding_dir).glob("*.tmp-*"))

    taken.rmdir()
    result = driver.run(c, cluster)
    assert (len(result.failed), result.done.indexed, result.done.encoded) == (0, 0, 1)


def test_without_members_tars_are_indexed_and_encoded_all_the_same(tars, cluster, tmp_path):
    tree = {"name": "x", "out": f"{tmp_path}/run", "data": {"tars": str(tars(2, 4))}}
    result = driver.run(configs.build(PreencodeConfig, tree), cluster)
    assert (result.done.rows, result.done.encoded, result.largest_px) == (8, 2, 0)
    told = "\n".join(report.summary_lines(result))
    assert "too small" not in told
    assert "captions        8 distinct in their shard of 8, 56 tokens" in told
    assert "of the rate of its matrix products" in told


def test_an_actor_that_read_ahead_writes_the_same_bytes(config, tars, tmp_path, contents):
    """The class behind the actor, in this process: what was read ahead is what is then used."""
    c = config(f"data.tars={tars(3, 5)}")
    job, found = driver.make_job(c), importing.list_tars(c)
    plain = EncodeActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    for tar in found:
        plain(job).process(tar)
    one_by_one = contents(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    ahead = plain(job)
    for tar, following in zip(found, [*found[1:], None], strict=True):
        _, done = ahead.process(tar, following)
        assert (done.indexed, done.encoded) == (True, True)
        assert list(ahead._ahead) == ([] if following is None else [following])
    assert contents(tmp_path / "run") == one_by_one
    assert len(one_by_one) == 3 * 10


@pytest.mark.parametrize(
    ("trouble", "kind", "told"),
    [
        (MemoryError("x"), ShardError, "not enough memory"),
        (torch.OutOfMemoryError("x"), ShardError, "not enough memory"),
        (OSError(5, "Input/output error"), StorageError, "Input/output error"),
    ],
)
def test_what_a_machine_does_to_one_shard_is_told_of_that_shard(
    config, tars, monkeypatch, trouble, kind, told
):
    c = config(f"data.tars={tars(1, 3)}")
    (tar,) = importing.list_tars(c)
    actor = EncodeActor.__ray_metadata__.modified_class(driver.make_job(c))  # type: ignore[attr-defined]

    def fails(*_):
        raise trouble

    monkeypatch.setattr(shard, "finish", fails)
    _, error = actor.process(tar)
    assert isinstance(error, kind)
    assert "00000.tar" in error.message
    assert told in error.message


def test_a_bug_in_an_actor_stays_a_bug(config, tars, monkeypatch):
    c = config(f"data.tars={tars(1, 3)}")
    (tar,) = importing.list_tars(c)
    actor = EncodeActor.__ray_metadata__.modified_class(driver.make_job(c))  # type: ignore[attr-defined]

    def fails(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(shard, "finish", fails)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        actor.process(tar)


def test_unfinished_tars_of_img2dataset_are_left_out_and_told(config, tars, cluster):
    folder = tars(3, 4)
    (folder / "00001_stats.json").write_text('{"successes": 4}')
    result = driver.run(config(f"data.tars={folder}"), cluster)
    assert (result.shards, result.done.shards, result.unfinished) == (
        1,
        1,
        ("00000.tar", "00002.tar"),
    )
    told = "\n".join(report.summary_lines(result))
    assert "not finished    2 tars have no _stats.json of img2dataset and are left out: 0" in told
