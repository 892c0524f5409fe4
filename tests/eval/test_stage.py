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

from eval import evaluation, sampling, stage
from eval.inputs import gather
from eval.prompts import items
from imagen import cascade, storage
from imagen.text.encoder import encoder_fingerprint

ROOT = Path(__file__).parents[2]
SLOW = {"count": 60, "steps": 30}  # long enough to be killed in the middle


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
    (folder,) = [n for n in storage.listdir(config.evals) if not n.startswith(".")]
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
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 300
    assert "tiny digits: evaluation" in (folder / "report.html").read_text()
    body = numbers(config)
    assert body["digit_accuracy"]["n"] == 60
    assert list(body["members"]) == ["base", "sr1"]
    assert body["memorisation"]["heldout"]["n"] > 20
    assert str(folder / "grid.png") in out.splitlines()
    assert "Traceback" not in err
    assert stage.state(config).status == "done"


@pytest.mark.cluster
@pytest.mark.slow
def test_samples_of_the_actors_are_those_of_the_library(finished):
    config = finished[0]
    work = sampling.chunks(
        str(only_folder(config) / "samples"),
        items(config.eval),
        stage._assembled(config),
        config.eval.options,
    )
    images = sampling.read(work, config.members)
    item = items(config.eval)[37]
    loaded = cascade.Cascade.load(config.cascade)
    alone = loaded.sample([item.prompt], [item.seed], config.eval.options)
    for name, x0 in alone.items():
        mine = images[name][37][:, :, 0].astype(int)
        theirs = ((x0[0, 0].numpy() + 1) * 127.5).round()
        assert np.abs(mine - theirs).max() <= 1


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


def sample_here(project):
    """Assemble and sample in this process, without Ray; return the evaluation's folder."""
    found, text = gather(project), project.text
    fingerprint = cascade.assemble(
        project.cascade, found.snapshots, text, encoder_fingerprint(text)
    )
    folder = stage.folder_of(project, found)
    sampler = sampling.Sampler(project.cascade, project.eval.options)
    for chunk in evaluation.chunks(project, folder, fingerprint):
        assert sampler.sample(chunk) == len(chunk.items)
    return folder


@pytest.mark.slow
def test_everything_can_lie_on_an_object_store(tiny):
    config, _ = make_project(tiny, "memory://bucket/eval-stage")
    folder = sample_here(config)
    found = stage.run(config)
    assert found.status == "done"
    assert f"{folder}/report.html" in found.outputs
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
