import dataclasses
from pathlib import Path

import pytest
import torch

from train import dryrun, stage
from train.config import TrainConfig


def line(told: str, name: str) -> str:
    (found,) = [part for part in told.split("\n") if part.startswith(f"{name:<18}")]
    return found


def train(helpers, **keys: object) -> TrainConfig:
    return TrainConfig(**{**helpers.TREE["train"]["base"], **keys})


def test_a_dry_run_tells_what_a_run_takes_and_touches_nothing(
    helpers, project: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dryrun, "LOADER_S", 0.01)
    before = sorted(Path(project).rglob("*"))
    config = helpers.make_config(
        project, validate=256, grid=8, milestone_every=80, ema_profiles=(0.05, 0.1)
    )
    told = stage.describe(config, "sr1")
    assert line(told, "left to do").endswith("160 images")
    assert line(told, "network").endswith("56,177 weights")
    assert "8 images each, in 1 passes of 8" in line(told, "batches")
    assert "weights 0.2 MB" in line(told, "memory")
    assert "EMA 0.7 MB" in line(told, "memory")  # with those of two profiles
    assert "3 checkpoints of 1.3 MB, 3 snapshots of 0.9 MB" in line(told, "disk")
    assert "and 2 of each for ever" in line(told, "disk")
    assert "11 of 11 held-out samples" in line(told, "validation")
    assert " minutes or more on one like this machine's" in line(told, "validation")
    assert "images/s, by one process" in line(told, "loader alone")
    assert "MFLOP an image" in line(told, "operations")
    assert sorted(Path(project).rglob("*")) == before
    fsdp = dataclasses.replace(config.train["base"], parallel="fsdp", workers=(1, 4))
    told = stage.describe(dataclasses.replace(config, train={"base": fsdp}), "base")
    assert "MB (1) to " in line(told, "memory")


def test_without_held_out_samples_no_validation_is_told(helpers, project: str, monkeypatch):
    monkeypatch.setattr(dryrun, "LOADER_S", 0.01)
    told = stage.describe(helpers.make_config(project), "base")
    assert line(told, "validation").endswith("none: 11 held-out samples, validate 0")


def test_every_number_of_workers_is_told_those_that_do_the_same_in_one_line(helpers):
    told = dryrun.batches(train(helpers, global_batch=64, microbatch=2, workers=(1, 64)))
    assert told[0] == "1 workers: 64 images each, in 32 passes of 2"
    assert told[-2:] == [
        "33-63 workers: 1 or 2 images each, in 1 passes of 1 or 2",
        "64 workers: 1 images each, in 1 passes of 1",
    ]
    assert told[-4].startswith("22-31 workers: 2 or 3 images each, in 2 passes of 1 or 2")
    ranges = [line.partition(" ")[0].split("-") for line in told]
    assert [n for ends in ranges for n in range(int(ends[0]), int(ends[-1]) + 1)] == [*range(1, 65)]
    uneven = dryrun.batches(train(helpers, microbatch=1, workers=(3, 3)))
    assert uneven == ["3 workers: 2 or 3 images each, in 3 passes of 1"]


def test_the_hours_of_a_validation_follow_from_one_core(helpers, project: str, monkeypatch):
    monkeypatch.setattr(dryrun, "LOADER_S", 0.01)
    monkeypatch.setattr(dryrun.flops, "peak", lambda *_: float(torch.get_num_threads()))
    threads = torch.get_num_threads()
    config = helpers.make_config(project, validate=256)
    told = line(stage.describe(config, "sr1"), "validation")
    each = dryrun.flops.training_flops(config.members["sr1"])
    assert f"({2 * 2 * 11 * each / 3 / 3600:,.1f} hours or more" in told
    assert torch.get_num_threads() == threads


def test_operations_are_told_with_few_digits():
    assert dryrun._operations(24.1e6) == "24.1 MFLOP"
    assert dryrun._operations(2.5e21) == "2.5e+03 EFLOP"
