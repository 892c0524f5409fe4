import contextlib
import json
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.exceptions
import torch

from imagen import manifest, snapshot
from imagen.errors import StorageError
from imagen.network.unet import build
from runtime import log, session
from train import rundir, stage, tasks, validator
from train.config import TrainStageConfig
from train.job import Inputs, Job
from train.results import TRIES, Results
from train.validating import Task
from train.validator import Validator


def write_snapshot(config: TrainStageConfig, images: int, scale: float) -> Path:
    """A snapshot whose output is larger, and so worse, the larger `scale` is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(config.members["base"].network)
        for weight in net.parameters():
            weight.data += scale * torch.randn_like(weight)
    folder = Path(config.run_dir("base"), "snapshots", f"{images:012d}")
    weights = net.state_dict()
    provenance = {"images_seen": images}
    snapshot.save(
        str(folder), "base", config.members["base"], weights, provenance, {"raw": weights}
    )
    return folder


def small(helpers, folder: str, **train: object) -> TrainStageConfig:
    config = helpers.make_config(folder, **{"validate": 8, "grid": 1, **train})
    return helpers.changed(config, "base", sampling={"steps": 1})


def left(job: Job) -> int:
    found = validator.open_results(job)
    return 0 if found is None else validator.left(found)


def results(config: TrainStageConfig) -> list[str]:
    folder = Path(config.run_dir("base"), "validation")
    return sorted(path.name.removeprefix("00000000") for path in folder.glob("*"))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_every_snapshot_gets_a_result_and_the_best_is_named(
    helpers, project: str, capfd: pytest.CaptureFixture
):
    config = small(helpers, project)
    job = Job(config, "base", "one")
    write_snapshot(config, 0, 0.3)
    damaged = write_snapshot(config, 80, 0.2)
    (weights,) = damaged.glob("weights-*")
    weights.write_bytes(bytes(weights.stat().st_size))
    failed = Path(config.run_dir("base"), "validation", f"{80:012d}.failed.json")
    for _ in range(TRIES - 1):
        Results.of(config, "base", Inputs.open(config, "base").identity).fail(f"{80:012d}", "it")
    unfinished = write_snapshot(config, 120, 0.1)
    (unfinished / "snapshot.json").unlink()
    with session.connect("local", num_cpus=0):  # tasks take none of what training wants
        with Validator(job):
            write_snapshot(config, 160, 0.1)
        _check_results(config, capfd.readouterr().err)
        with Validator(job):
            pass
        assert f"{TRIES} tries failed (delete `{failed}`)" in capfd.readouterr().err
        assert len(log.read(f"{job.run_dir}/validation.jsonl")) == 2
        write_snapshot(config, 240, 0.2)
        with pytest.raises(ZeroDivisionError), Validator(job):
            _ = 1 / 0  # training failed: nobody waits for pictures
    assert left(job) == 1
    assert not list(failed.parent.glob("*240.json"))


def _check_results(config: TrainStageConfig, told: str) -> None:
    assert results(config) == [
        *("0000.json", "0000.png", "0080.failed.json", "0160.json", "0160.png")
    ]
    run = config.run_dir("base")
    failed = json.loads(Path(run, "validation", f"{80:012d}.failed.json").read_text())
    assert failed["tries"] == TRIES
    assert f"validation of snapshot {80:012d} failed (given up, {TRIES} tries)" in told
    assert "its manifest says" in failed["reason"]
    assert "Traceback" not in failed["reason"]
    lines = log.read(f"{run}/validation.jsonl")
    assert [line["images_seen"] for line in lines] == [0, 160]
    assert lines[1]["ema"] < lines[0]["ema"]
    best = manifest.read(f"{run}/best.json", rundir.BEST_KIND)
    assert best["snapshot"] == f"snapshots/{160:012d}"
    assert (best["images_seen"], best["loss"]) == (160, lines[1]["ema"])


def test_without_held_out_samples_a_validator_says_so_and_does_nothing(
    helpers, project: str, capsys: pytest.CaptureFixture
):
    path = f"{project}/index/manifest.json"
    body = manifest.read(path, "dataset")
    for shard in body["shards"]:
        shard["heldout"] = 0
    manifest.write(path, "dataset", body)
    job = Job(small(helpers, project), "base", "one")
    with Validator(job):
        write_snapshot(job.config, 80, 0.1)
    assert capsys.readouterr().err.count("no held-out samples (data.heldout)") == 1
    assert results(job.config) == []
    assert left(job) == 0


def test_data_that_cannot_be_read_is_a_warning(helpers, tmp_path: Path, capsys):
    with Validator(Job(small(helpers, str(tmp_path)), "base", "one")):
        pass
    assert "snapshots of base are not validated: no finished index" in capsys.readouterr().err


def test_a_run_that_wants_no_validation_looks_at_nothing(helpers, tmp_path: Path, capsys):
    with Validator(Job(helpers.make_config(str(tmp_path)), "base", "one")):
        pass
    assert capsys.readouterr().err == ""


def test_a_task_takes_nothing_of_training_or_a_place_of_its_own(monkeypatch):
    monkeypatch.delenv(session.EXPECTS, raising=False)
    trained_on = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    own = {"Alive": True, "Resources": {"CPU": 4.0, tasks.FENCE: 1.0}}
    with_gpu = {"Alive": True, "Resources": {"GPU": 1.0, tasks.FENCE: 1.0}}
    gone = {"Alive": False, "Resources": {tasks.FENCE: 1.0}}
    fence = {"resources": {tasks.FENCE: 1}}
    assert tasks.takes([trained_on, gone]) == {"num_cpus": 0}
    assert tasks.takes([trained_on, own]) == {"num_cpus": 0, "num_gpus": 0, **fence}
    assert tasks.takes([trained_on, with_gpu]) == {"num_cpus": 0, "num_gpus": 1, **fence}
    monkeypatch.setenv(session.EXPECTS, "imagen_base,imagen_validation")
    assert tasks.takes([trained_on, gone]) == {"num_cpus": 0, "num_gpus": 0, **fence}
    monkeypatch.setenv(session.EXPECTS, "GPU,imagen_validation")
    assert tasks.takes([trained_on]) == {"num_cpus": 0, "num_gpus": 1, **fence}
    assert tasks.takes([trained_on, own]) == {"num_cpus": 0, "num_gpus": 0, **fence}


CPU = torch.device("cpu")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let tasks run in the driver's thread, without Ray; the names of the snapshots they are of."""
    names: list[str] = []

    def run(task: Task, *_: object) -> dict | None:
        names.append(task.name)
        return task(CPU)

    monkeypatch.setattr(tasks, "run", run)
    monkeypatch.setattr(validator, "POLL_S", 0.01)
    return names


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    names: list[str] = []

    def run(task: Task, *_: object) -> dict | None:
        names.append(task.name)
        raise error

    monkeypatch.setattr(tasks, "run", run)
    monkeypatch.setattr(validator, "POLL_S", 0.01)
    return names


def test_a_store_that_does_not_answer_for_a_while_delays_validation(
    helpers, project: str, here, monkeypatch, capsys
):
    job = Job(small(helpers, project), "base", "one")
    write_snapshot(job.config, 80, 0.1)
    snapshots, tell = Results.snapshots, validator.ValidationLog.tell
    refused = {"list": 2, "tell": 1}

    def flaky(what: str, real):
        def call(*args):
            refused[what] -= 1
            if refused[what] >= 0:
                raise StorageError(f"cannot {what}: 503")
            return real(*args)

        return call

    monkeypatch.setattr(Results, "snapshots", flaky("list", snapshots))
    monkeypatch.setattr(validator.ValidationLog, "tell", flaky("tell", tell))
    with Validator(job):
        pass
    assert here == [f"{80:012d}"]  # once: the result was there when telling it failed
    assert [line["images_seen"] for line in log.read(f"{job.run_dir}/validation.jsonl")] == [80]
    assert capsys.readouterr().err.count("waits, and tries again: cannot tell: 503") == 1


def test_what_is_waited_for_is_told_without_a_terminal(helpers, project: str, capsys):
    job = Job(small(helpers, project), "base", "one")
    waiting = Validator(job)
    waiting._results = validator.open_results(job)
    waiting._tell_left()
    assert capsys.readouterr().err == ""
    write_snapshot(job.config, 80, 0.1)
    waiting._tell_left()
    told = capsys.readouterr().err
    assert "base is done; 1 snapshots are still to validate. Ctrl-C is safe" in told


def test_a_store_that_is_gone_is_not_waited_for_without_end(
    helpers, project: str, monkeypatch, capsys
):
    job = Job(small(helpers, project), "base", "one")
    monkeypatch.setattr(validator, "POLL_S", 0.01)
    monkeypatch.setattr(validator, "PATIENCE_S", 0)

    def gone(_):
        raise StorageError("cannot list: 403")

    monkeypatch.setattr(Results, "snapshots", gone)
    with Validator(job):
        pass
    assert "validation of base has ended: cannot list: 403" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lost",
    [
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.RayTaskError("f", "trace", StorageError("503")),
        ray.exceptions.RayTaskError("f", "trace", ConnectionResetError()).as_instanceof_cause(),
    ],
)
def test_a_lost_machine_or_store_is_no_failed_try(helpers, project, monkeypatch, capsys, lost):
    job = Job(small(helpers, project), "base", "one")
    write_snapshot(job.config, 80, 0.1)
    names = raising(monkeypatch, lost)
    with Validator(job):
        pass
    assert names == [f"{80:012d}"] * validator.LOST
    assert results(job.config) == []
    assert "was lost 5 times; the next run tries again" in capsys.readouterr().err
    assert left(job) == 1


def test_what_a_task_itself_raises_counts_until_the_snapshot_is_written_again(
    helpers, project: str, monkeypatch, capsys
):
    job = Job(small(helpers, project), "base", "one")
    write_snapshot(job.config, 80, 0.1)
    names = raising(monkeypatch, ray.exceptions.RayTaskError("f", "trace", ValueError("no")))
    for _ in range(TRIES + 1):
        with Validator(job):
            pass
    assert len(names) == TRIES
    assert "given up, 3 tries" in capsys.readouterr().err
    assert left(job) == 0
    other = Job(small(helpers, project, validate=4), "base", "one")
    assert left(other) == 1  # by other settings it has not been tried
    write_snapshot(job.config, 80, 0.2)
    assert left(job) == 1


def test_the_best_stays_until_it_is_judged_by_todays_settings(helpers, project: str, here):
    job = Job(small(helpers, project), "base", "one")
    for images, scale in ((80, 0.3), (160, 0.05), (240, 0.2)):
        write_snapshot(job.config, images, scale)
    with Validator(job):
        pass
    best = rundir.best(job.run_dir)
    assert best == f"{job.run_dir}/snapshots/{160:012d}"
    here.clear()
    other = small(helpers, project, validate=4)
    found = validator.open_results(Job(other, "base", "two"))
    assert found is not None
    worse = Task(other, "base", found, f"{80:012d}")(CPU)
    found.note_best([worse] if worse else [])
    assert rundir.best(job.run_dir) == best
    with Validator(Job(other, "base", "two")):
        pass
    assert here == [f"{160:012d}", f"{240:012d}"]
    assert rundir.best(job.run_dir) == best


def test_a_result_that_an_earlier_driver_did_not_tell_is_told_also_of_a_finished_run(
    helpers, project: str, here, monkeypatch
):
    job = Job(small(helpers, project), "base", "one")
    write_snapshot(job.config, 80, 0.1)
    found = validator.open_results(job)
    assert found is not None
    assert Task(job.config, "base", found, f"{80:012d}")(CPU) is not None
    monkeypatch.setattr(stage.session, "connect", lambda _: contextlib.nullcontext())
    for _ in range(2):
        stage._validate_rest(job, None)
    assert len(log.read(f"{job.run_dir}/validation.jsonl")) == 1
    assert rundir.best(job.run_dir) == f"{job.run_dir}/snapshots/{80:012d}"
    assert here == []


@pytest.mark.parametrize(
    ("there", "free", "gpu"),
    [({}, {}, False), ({"GPU": 2}, {}, False), ({"GPU": 2}, {"GPU": 1}, True)],
)
def test_after_the_training_a_gpu_that_is_free_is_used(monkeypatch, there, free, gpu):
    monkeypatch.setattr(tasks, "GPU_WAIT_S", 0)
    monkeypatch.setattr(tasks, "LOOK_S", 0)
    asked = {}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": there}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr(ray, "wait", lambda *_, **__: ([1], []))
    monkeypatch.setattr(ray, "get", lambda _: None)

    def remote(**options):
        asked.update(options)
        return lambda _: types.SimpleNamespace(remote=lambda _: None)

    monkeypatch.setattr(ray, "remote", remote)
    task: Any = None
    tasks.run(task, threading.Event(), last=False)
    assert "num_gpus" not in asked
    tasks.run(task, threading.Event(), last=True)
    assert asked.get("num_gpus", 0) == gpu
