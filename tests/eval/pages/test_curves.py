import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval import curves
from imagen import storage


def newest(config):
    return f"{config.evals}/{[n for n in storage.listdir(config.evals) if n[:12].isdigit()][-1]}"


@pytest.mark.slow
def test_tensorboard_reads_all_evaluations_in_order_however_often_they_are_told(
    tiny, run, tmp_path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(run.out, tmp_path / "out")
    config = tiny.make_config(tmp_path / "out")
    for _ in range(2):
        curves.tell(config, newest(config))
    assert len(storage.listdir(f"{config.evals}/tensorboard")) == 1
    read = EventAccumulator(f"{config.evals}/tensorboard")
    read.Reload()
    points = [(e.step, round(e.value, 6)) for e in read.Scalars("digit_accuracy")]
    assert points == [(640, 0.2), (1280, 0.6), (1920, 0.9)]
    grids = read.Images("samples")
    assert [image.step for image in grids] == [640, 1280, 1920]
    assert grids[0].encoded_image_string[:4] == b"\x89PNG"


def test_what_has_not_finished_is_not_told(run, tmp_path):
    curves.tell(run, f"{run.evals}/000000009999-nothing")
    assert not os.path.exists(f"{run.evals}/tensorboard")


WANDB = """
import pickle, sys
from eval import curves
config, folder = pickle.load(sys.stdin.buffer)
curves.tell(config, folder)
"""


@pytest.mark.slow
def test_weights_and_biases_without_a_key_is_told_and_its_files_are_kept(
    tiny, run, leave, tmp_path
):
    shutil.copytree(run.out, tmp_path / "out")
    config = tiny.make_config(tmp_path / "out", wandb="tiny")
    gone = {"WANDB_MODE", "WANDB_API_KEY"}
    env = {key: value for key, value in os.environ.items() if key not in gone}
    env |= {"HOME": str(tmp_path), "NETRC": f"{tmp_path}/none"}
    done = subprocess.run(
        [sys.executable, "-c", WANDB],
        input=pickle.dumps((config, newest(config))),
        env=env,
        capture_output=True,
        timeout=240,
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    assert "wandb: " in told
    assert f"kept in `{config.evals}`: send them with `wandb sync`" in told
    (kept,) = Path(config.evals, "wandb").glob("offline-run-*/run-*.wandb")
    assert Path(config.evals, "wandb-id").read_text() in kept.name
    assert b"digit_accuracy" in kept.read_bytes()


def test_without_the_package_it_is_told_and_nothing_stops(tiny, run, monkeypatch, capsys, tmp_path):
    shutil.copytree(run.out, tmp_path / "out")
    config = tiny.make_config(tmp_path / "out", wandb="tiny")
    monkeypatch.setitem(sys.modules, "wandb", None)
    curves.tell(config, newest(config))
    assert "the curves of eval are not kept there" in capsys.readouterr().err
