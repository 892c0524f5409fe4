import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest

from imagen import storage
from runtime import log
from train.curves import wandb_run
from train.job import Job
from train.logs import SCALARS, RunLog, ValidationLog


def write(folder: str, images_seen: int, losses: dict[int, float]) -> None:
    run = RunLog(folder, images_seen)
    run.event("start", images_seen=images_seen)
    for images, loss in losses.items():
        run.progress(images, step=images // 8, loss=loss, lr=0.5)
    run.close()


@pytest.mark.slow
def test_tensorboard_reads_the_curves_of_a_run_that_was_resumed(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(str(tmp_path), 0, {8: 0.9, 300: 0.7, 2**40: 0.1})
    write(str(tmp_path), 8, {300: 0.5})
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert set(curves.Tags()["scalars"]) == {"loss", "lr"}
    points = [(e.step, round(e.value, 6)) for e in curves.Scalars("loss")]
    assert points == [(8, 0.9), (300, 0.5)]  # what was trained again replaces what it was


@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_log_holds_events_and_progress(tmp_path: Path, place: str):
    folder = str(tmp_path) if place == "local" else f"memory://logs{tmp_path}"
    write(folder, 0, {8: 0.25})
    first, second = log.read(f"{folder}/log.jsonl")
    assert (first["event"], first["images_seen"]) == ("start", 0)
    assert (second["images_seen"], second["step"], second["loss"]) == (8, 1, 0.25)


def test_every_curve_reaches_tensorboard_and_the_log(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunLog(str(tmp_path), 0)
    fields = dict.fromkeys(SCALARS, 0.5) | {"bad/unreadable": 3, "step": 1}
    run.progress(8, **fields)
    run.close()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert set(curves.Tags()["scalars"]) == {*SCALARS, "bad/unreadable"}
    (line,) = log.read(f"{tmp_path}/log.jsonl")
    assert {key: line[key] for key in fields} == fields


RESULT = {
    "images_seen": 80,
    "ema": {"loss": {"mean": 0.5}, "bins": [{"logsnr": [None, -10.0], "mean": 0.9}]},
    "raw": {"loss": {"mean": 0.6}},
    "bad": {"unreadable": 1},
}


def test_a_result_is_told_once_in_lines_and_curves(helpers, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = Job(helpers.make_config(str(tmp_path)), "base", "one")
    for _ in range(2):  # two drivers, one after the other
        told = ValidationLog(job)
        told.tell(RESULT)
        told.tell(RESULT)
        told.close()
    (line,) = log.read(f"{job.run_dir}/validation.jsonl")
    assert (line["images_seen"], line["ema"], line["raw"]) == (80, 0.5, 0.6)
    assert line["ema_logsnr_below_-10"] == 0.9
    assert line["bad"] == {"unreadable": 1}
    curves = EventAccumulator(f"{job.run_dir}/tensorboard/validation")
    curves.Reload()
    assert [(e.step, e.value) for e in curves.Scalars("validation/ema")] == [(80, 0.5)]


WANDB = """
import pickle, sys
from train.logs import RunLog
job = pickle.load(sys.stdin.buffer)
for start in (0, 16):
    run = RunLog.of(job, start)
    run.progress(start + 8, loss=0.5, **{"bad/unreadable": 2})
    run.close()
"""


@pytest.mark.slow
def test_weights_and_biases_without_a_network_keeps_the_curves_in_files(helpers, tmp_path: Path):
    job = Job(helpers.make_config(str(tmp_path), wandb="tiny"), "base", "one")
    env = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    done = run_child(WANDB, job, env)
    assert done.returncode == 0, done.stderr
    files = sorted(Path(job.run_dir, "wandb").glob("offline-run-*/run-*.wandb"))
    own = Path(job.run_dir, "wandb-id").read_text()
    assert len(files) == 2  # both starts are of one run, which a server joins
    assert all(own in file.name for file in files)
    data = files[0].read_bytes()
    assert b"bad/unreadable" in data
    assert b"images_seen" in data
    assert len(log.read(f"{job.run_dir}/log.jsonl")) == 2


@pytest.mark.slow
def test_weights_and_biases_without_a_key_is_told_and_training_goes_on(helpers, tmp_path: Path):
    job = Job(helpers.make_config(str(tmp_path), wandb="tiny"), "base", "one")
    gone = {"WANDB_MODE", "WANDB_API_KEY"}
    env = {key: value for key, value in os.environ.items() if key not in gone}
    done = run_child(WANDB, job, {**env, "HOME": str(tmp_path), "NETRC": f"{tmp_path}/none"})
    assert done.returncode == 0, done.stderr
    assert "wandb: " in done.stderr
    assert f"kept in `{job.run_dir}`: send them with `wandb sync`" in done.stderr
    assert sorted(Path(job.run_dir, "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(log.read(f"{job.run_dir}/log.jsonl")) == 2


def run_child(program: str, job: Job, env: dict) -> subprocess.CompletedProcess:
    """wandb starts processes and warns of this and that: it gets a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(job),
        env=env,
        cwd=Path.cwd(),
        capture_output=True,
        check=False,
        timeout=240,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.mark.parametrize("refused", ["import", "settings", "init"])
def test_curves_that_cannot_be_begun_never_stop_a_training(
    helpers, tmp_path: Path, monkeypatch, capsys, refused: str
):
    job = Job(helpers.make_config(str(tmp_path), wandb="tiny"), "base", "one")

    def init(**_: object) -> None:
        raise OSError("no process left")

    fake = types.SimpleNamespace(init=init, Settings=dict)
    if refused == "settings":
        monkeypatch.setattr(storage, "put", lambda *_, **__: init())
    monkeypatch.setitem(sys.modules, "wandb", None if refused == "import" else fake)
    assert wandb_run(job) is None
    assert "the curves of train are not kept there: log.jsonl" in capsys.readouterr().err
