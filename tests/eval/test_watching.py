import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import sampling, score, stage, watching
from eval.lineups import lineups
from imagen import manifest, storage
from imagen.errors import StorageError

ROOT = Path(__file__).parents[2]


def start(path, *words):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "eval", path, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def finished(config):
    names = [name for name in storage.listdir(config.evals) if name[:12].isdigit()]
    return [n for n in names if storage.exists(f"{config.evals}/{n}/manifest.json")]


def wait_for(config, count, process):
    deadline = time.monotonic() + 240
    while len(finished(config)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"only {finished(config)} came"
        time.sleep(0.1)


def end_training(config):
    for member in config.members:
        manifest.write(storage.join(config.run_dir(member), "run.json"), "run", {"files": {}})


def sample_here(config):
    """Sample all line-ups in this process, so that no Ray is needed for the rest."""
    for lineup in lineups(config):
        found = stage.Found.of(config, lineup).evaluation
        sampler = sampling.Sampler(found.source)
        for task in found.tasks:
            sampler.sample(task)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_is_watched_from_its_first_snapshot_to_its_end(tiny, tmp_path):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    path = tiny.write_config(tmp_path, count=10)
    process = start(path, "--watch")
    tiny.write_snapshot(config, "base", images_seen=100)
    wait_for(config, 1, process)
    tiny.write_snapshot(config, "sr1", images_seen=200)
    wait_for(config, 2, process)
    tiny.write_snapshot(config, "base", images_seen=300)
    end_training(config)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "waits for new snapshots" in err
    assert out.startswith("eval: ")
    lines = (Path(config.evals) / "metrics.jsonl").read_text().splitlines()
    seen = [max(json.loads(line)["images_seen"].values()) for line in lines]
    assert seen == [100, 200, 300]
    assert stage.state(config).status == "done"
    assert (Path(config.cascade) / "cascade.json").exists()


@pytest.mark.cluster
@pytest.mark.slow
def test_two_evaluators_at_once_share_the_work_and_do_nothing_twice(tiny, tmp_path):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    path = tiny.write_config(tmp_path, count=10)
    for images in (100, 200, 300):
        tiny.write_snapshot(config, "base", images_seen=images)
    processes = [start(path, "--all") for _ in range(2)]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    evaluated = [int(out.split()[1]) for out, _ in told]
    assert sum(evaluated) == 3, told
    assert len(finished(config)) == 3
    assert watching.missing(config) == []


@pytest.mark.slow
def test_a_failed_evaluation_is_noted_tried_again_and_given_up_while_others_go_on(
    tiny, tmp_path, monkeypatch
):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    for images in (100, 200):
        tiny.write_snapshot(config, "base", images_seen=images, seed=images)
    sample_here(config)
    learnt, yardstick = [], score.yardstick
    monkeypatch.setattr(score, "yardstick", lambda *a: learnt.append(a) or yardstick(*a))
    (broken,) = [lineup for lineup in lineups(config) if lineup.images == 200]
    chunk = stage.Found.of(config, broken).evaluation.chunks[0].path
    whole = storage.get(chunk)
    storage.put(chunk, whole[: len(whole) // 2])
    told = []
    first = watching.once(config, None, told.append)
    assert [name[:12] for name in first.done] == [f"{100:012d}"]
    (name,) = first.failed
    assert name.startswith(f"{200:012d}")
    note = json.loads(storage.get(f"{config.evals}/failed/{name}.json"))
    assert note["tries"] == 1
    assert "try 1 of 3" in "\n".join(told)
    assert name in (Path(config.evals) / "report.html").read_text()
    for _ in range(watching.TRIES - 1):
        watching.once(config, None, told.append)
    last = watching.once(config, None, told.append)
    assert last.given_up == [name]
    assert "delete `" in last.failed[name]
    storage.put(chunk, whole)
    storage.delete(f"{config.evals}/failed/{name}.json")
    assert watching.once(config, None, told.append).done == [name]
    assert not storage.exists(f"{config.evals}/failed/{name}.json")
    assert len(learnt) == 1  # real images are read, and the judge taught, once for all of them


@pytest.mark.slow
def test_a_snapshot_that_comes_meanwhile_waits_for_the_next_round(tiny, tmp_path, monkeypatch):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    for member in config.members:
        tiny.write_snapshot(config, member, images_seen=100)
    sample_here(config)
    work = stage.work

    def work_while_training_goes_on(*words):
        tiny.write_snapshot(config, "base", images_seen=200, seed=200)
        return work(*words)

    monkeypatch.setattr(stage, "work", work_while_training_goes_on)
    told = []
    assert len(watching.once(config, None, told.append).done) == 1
    assert not storage.exists(f"{config.cascade}/cascade.json")  # the newest is not evaluated yet
    monkeypatch.setattr(stage, "work", work)
    sample_here(config)
    assert len(watching.once(config, None, told.append).done) == 1
    assert storage.exists(f"{config.cascade}/cascade.json")


@pytest.mark.slow
def test_what_others_evaluate_meanwhile_is_not_counted_as_ones_own(tiny, tmp_path, monkeypatch):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    for images in (100, 200):
        tiny.write_snapshot(config, "base", images_seen=images, seed=images)
    sample_here(config)
    work = stage.work

    def work_while_others_do_the_rest(config, address, lineup):
        for other in watching.missing(config):
            if other.images < lineup.images:
                assert work(config, address, other)
        return work(config, address, lineup)

    monkeypatch.setattr(stage, "work", work_while_others_do_the_rest)
    told = []
    came_to = watching.once(config, None, told.append)
    assert [name[:12] for name in came_to.done] == [f"{200:012d}"]
    assert told[-1].endswith("others have evaluated it meanwhile")
    assert len(finished(config)) == 2


@pytest.mark.slow
def test_an_old_failure_keeps_nobody_from_assembling_and_a_watch_from_ending(tiny, tmp_path):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    tiny.write_snapshot(config, "base", images_seen=100, data_fingerprint="e" * 16)
    tiny.write_snapshot(config, "sr1", images_seen=100)
    for member in config.members:
        tiny.write_snapshot(config, member, images_seen=200, seed=200)
    end_training(config)
    newest = lineups(config)[-1]
    found = stage.Found.of(config, newest).evaluation
    sampler = sampling.Sampler(found.source)
    for task in found.tasks:
        sampler.sample(task)
    told, pauses = [], []
    last = watching.watch(config, None, told.append, pauses.append)
    assert pauses == []
    assert list(last.failed) == ["100 images"]
    assert "different values of data_fingerprint" in last.failed["100 images"]
    assert storage.exists(f"{config.cascade}/cascade.json")


def test_a_snapshot_that_training_deletes_meanwhile_is_no_failure(tiny, tmp_path, monkeypatch):
    config = tiny.make_config(tmp_path, count=10)
    tiny.write_data(tmp_path)
    folder = tiny.write_snapshot(config, "base", images_seen=100)

    def work(*_):
        storage.delete(f"{folder}/snapshot.json")
        raise StorageError("the weights are gone")

    monkeypatch.setattr(stage, "work", work)
    told = []
    came_to = watching.once(config, None, told.append)
    assert not came_to.failed
    assert "deleted meanwhile" in told[-1]


def test_a_store_that_is_away_is_waited_for(tiny, tmp_path, monkeypatch):
    config = tiny.make_config(tmp_path, count=10)
    end_training(config)
    answers = [StorageError("503"), StorageError("503"), None]

    def once(*_):
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return watching.Round()

    monkeypatch.setattr(watching, "once", once)
    pauses, told = [], []
    watching.watch(config, None, told.append, pauses.append)
    assert pauses == [watching.POLL_S] * 2
    assert told[0] == "waits for the store, and tries again: 503"
