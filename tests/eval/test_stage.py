import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import sampled, sampling, stage
from eval.prompts import items
from imagen import cascade, storage
from imagen.data.images import to_uint8

ROOT = Path(__file__).parents[2]
SLOW = {"count": 60, "steps": 30, "sweeps": {"guidance": [0, 2], "count": 10}}
# long enough to be killed in the middle


def start(path, *words):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "eval", path, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def evaluate(path, *words):
    process = start(path, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def make_project(tiny, folder, **section):
    config = tiny.make_config(folder, **section)
    tiny.write_data(folder)
    for member in config.members:
        tiny.write_snapshot(config, member)
    return config, tiny.write_config(folder, **section)


def times(folder):
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """An evaluated project: (config, path of its config file, what the command printed)."""
    config, path = make_project(tiny, tmp_path_factory.mktemp("whole"), **SLOW)
    code, out, err = evaluate(path)
    assert code == 0, err
    return config, path, out, err


def only_folder(config):
    (folder,) = [n for n in storage.listdir(config.evals) if n[:12].isdigit()]
    return Path(config.evals) / folder


def numbers(config):
    body = json.loads((only_folder(config) / "metrics.json").read_text())
    del body["cost"]
    return body


@pytest.mark.cluster
@pytest.mark.slow
def test_evaluation_writes_grid_metrics_and_report(finished):
    config, _, out, err = finished
    folder = only_folder(config)
    assert folder.name.startswith(f"{640:012d}-")
    for name in ("grid.png", "sweep-guidance.png", "nearest.png", "denoising.webp"):
        with Image.open(folder / name) as picture:
            assert picture.width > 100, name
    assert "tiny digits" in (Path(config.evals) / "report.html").read_text()
    body = numbers(config)
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == list(range(1000, 1060))
    right = sum(line["right"] for line in lines)
    assert right == body["digit_accuracy"]["hits"]
    assert [point["value"] for point in body["sweeps"]["guidance"]] == [0, 2]
    assert all("accuracy" in point for point in body["sweeps"]["guidance"])
    assert body["distribution"]["pca"]["fd"]["value"] > 0
    assert body["digit_accuracy"]["n"] == 60
    assert list(body["members"]) == ["base", "sr1"]
    cost = json.loads((folder / "metrics.json").read_text())["cost"]
    assert cost["actors"] >= 1
    assert cost["device"] == "cpu"
    assert body["memorisation"]["heldout"]["n"] > 20
    assert str(folder / "grid.png") in out.splitlines()
    assert "Traceback" not in err
    assert stage.state(config).status == "done"


@pytest.mark.cluster
@pytest.mark.slow
def test_samples_of_the_actors_are_those_of_the_library(finished):
    config = finished[0]
    work = stage.Found.of(config).evaluation.chunks
    item = items(config.eval)[37]
    loaded = cascade.Cascade.load(config.cascade)
    alone = loaded.sample([item.prompt], [item.seed], config.eval.options)
    for name, x0 in alone.items():
        images = sampled.ChunkImages(sampled.Chunks(work), name)
        assert len(images) == 60
        theirs = to_uint8(x0)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(images[37].astype(int) - theirs).max() <= 1


@pytest.mark.cluster
@pytest.mark.slow
def test_a_second_run_says_done_and_touches_nothing(finished):
    config, path, _, _ = finished
    before = times(config.out)
    code, out, _ = evaluate(path)
    assert code == 0
    assert out.startswith("eval: done already, 60 images, digit accuracy")
    after = times(config.out)
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


@pytest.mark.cluster
@pytest.mark.slow
def test_killed_in_mid_sampling_it_goes_on_and_ends_with_the_same_result(finished, tiny, tmp_path):
    config, path = make_project(tiny, tmp_path, **SLOW)
    process = start(path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("eval/*/samples/*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was sampled in two minutes"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = times(only_folder(config) / "samples")
    assert 1 <= len(kept) < 6
    assert stage.state(config).status == "partial"
    code, _, err = evaluate(path)
    assert code == 0, err
    assert times(only_folder(config) / "samples").items() >= kept.items()
    assert numbers(config) == numbers(finished[0])
    grids = [(only_folder(c) / "grid.png").read_bytes() for c in (config, finished[0])]
    assert grids[0] == grids[1]


@pytest.mark.cluster
@pytest.mark.slow
def test_newer_members_make_the_evaluation_stale_until_it_is_run_again(finished, tiny, tmp_path):
    import shutil

    shutil.copytree(finished[0].out, tmp_path / "copy")
    config = tiny.make_config(tmp_path / "copy", **SLOW)
    assert stage.state(config).status == "done"
    shutil.move(config.cascade, f"{config.cascade}-away")
    assert stage.state(config).status == "partial"
    stage.run(config)  # assembles again; all samples are there, so Ray is not needed
    assert stage.state(config).status == "done"
    tiny.write_snapshot(config, "sr1", images_seen=1280)
    assert stage.state(config).status == "stale"


def sample_here(project, lineup=None):
    """Sample in this process, without Ray; return the evaluation's folder."""
    found = stage.Found.of(project, lineup).evaluation
    sampler = sampling.Sampler(found.source)
    for task in found.tasks:
        sampler.sample(task)
    return found.folder


@pytest.mark.slow
def test_everything_can_lie_on_an_object_store(tiny):
    config, _ = make_project(tiny, "memory://bucket/eval-stage")
    folder = sample_here(config)
    found = stage.run(config)
    assert found.status == "done"
    assert f"{config.evals}/report.html" in found.outputs
    assert f"{folder}/grid.png" in found.outputs
    assert all(storage.exists(path) for path in found.outputs)


@pytest.mark.slow
def test_a_damaged_eval_is_done_again_without_sampling_again(project):
    folder = sample_here(project)
    count = len(storage.listdir(f"{folder}/samples"))
    storage.put(f"{folder}/samples/other.safetensors", b"of another cascade")
    state = stage.run(project)
    assert state.status == "done"
    assert len(storage.listdir(f"{folder}/samples")) == count
    storage.put(f"{folder}/metrics.json", b"{}")
    found = stage.state(project)
    assert (found.status, found.detail) == ("partial", "not finished: 20 of 20 images sampled")
    assert stage.run(project).status == "done"
    assert json.loads(storage.get(f"{folder}/metrics.json"))["images"] == 20
    storage.delete(f"{project.evals}/report.html")
    assert stage.state(project).detail == "evaluated, but the report is missing"
    assert stage.run(project).status == "done"


@pytest.mark.slow
def test_a_base_alone_is_evaluated_while_the_rest_is_still_untrained(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    tiny.write_data(tmp_path)
    tiny.write_snapshot(config, "base")
    (lineup,) = stage.lineups.lineups(config)
    sample_here(config, lineup)
    found = stage.run(config, lineup=lineup)
    assert found.status == "done"
    body = json.loads(storage.get(found.outputs[2]))
    assert list(body["images_seen"]) == ["base"]
    assert not storage.exists(f"{config.cascade}/cascade.json")
    assert stage.state(config).status == "missing"  # of the whole cascade


@pytest.mark.slow
def test_a_missing_config_is_told_without_a_traceback():
    code, _, err = evaluate("/no/such/config.yaml")
    assert code == 2
    assert err.startswith("error: config file `/no/such/config.yaml` does not exist")


@pytest.mark.slow
def test_help_teaches():
    code, out, _ = evaluate("--help")
    assert code == 0
    assert "ratio of medians near 1 is drawing" in out
