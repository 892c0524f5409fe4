"""What an earlier start left that died before its first checkpoint, and began otherwise."""

import dataclasses
from pathlib import Path

import pytest
import torch

from imagen import manifest, snapshot
from runtime import log
from train import leftovers, rundir
from train import worker as workers
from train.config import TrainStageConfig
from train.job import Inputs, Job
from train.loop import Trainer, World
from train.worker import run_rank

ALONE = World(0, 1, torch.device("cpu"))


def die(config: TrainStageConfig, after: int, launch: str) -> Path:
    """Train so many steps, then fail."""
    step, taken = Trainer.step, []

    def failing(self: Trainer, parts: list) -> None:
        if len(taken) == after:
            raise RuntimeError("out of memory")
        taken.append(1)
        step(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            run_rank(Job(config, "base", launch), ALONE)
    return Path(config.run_dir("base"))


def left(config: TrainStageConfig) -> list[str]:
    return leftovers.delete(config, "base", Inputs.open(config, "base").identity)


@pytest.fixture
def begun(helpers, project: str) -> tuple[TrainStageConfig, Path]:
    """A run that died at 24 images, with snapshots, results and a best one, but no checkpoint."""
    config = helpers.make_config(project, images=40, validate=8, snapshot_every=16)
    run = die(config, 3, "a")
    (run / "validation").mkdir()
    for name in ("000000000000.json", "000000000016.json", "000000000016.png"):
        (run / "validation" / name).write_text("{}")
    best = {"snapshot": "snapshots/000000000016", "images_seen": 16, "loss": 0.1}
    manifest.write(f"{run}/best.json", rundir.BEST_KIND, best)
    return config, run


def test_what_the_same_config_left_stays(begun):
    config, run = begun
    before = sorted(run.rglob("*"))
    assert left(config) == left(dataclasses.replace(config, name="another")) == []
    assert sorted(run.rglob("*")) == before
    assert len(list((run / "snapshots").iterdir())) == 2


@pytest.mark.parametrize("change", ["seed", "network", "recipe", "initial weights"])
def test_what_another_config_left_goes_with_its_results(helpers, begun, project, change: str):
    config, run = begun
    other = {
        "seed": lambda: dataclasses.replace(config, seed=99),
        "network": lambda: helpers.changed(config, "base", network={"widths": (32,)}),
        "recipe": lambda: helpers.make_config(project, images=40, validate=8, lr=0.5),
        "initial weights": lambda: helpers.make_config(
            project, images=40, validate=8, init_from=str(run / "snapshots" / "000000000016")
        ),
    }[change]()
    assert left(other) == ["000000000000", "000000000016"]
    assert list((run / "snapshots").iterdir()) == list((run / "validation").iterdir()) == []
    assert not (run / "best.json").exists()


def test_a_start_writes_the_snapshot_of_its_own_beginning(begun):
    config, run = begun
    folder = run / "snapshots" / "000000000000"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    die(config, 0, "b")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    die(dataclasses.replace(config, seed=99), 0, "c")
    assert snapshot.load(str(folder)).provenance["seed"] == 99


def test_a_start_that_fell_back_keeps_what_it_writes(helpers, project: str):
    config = helpers.make_config(project, images=80, keep_checkpoints=1)
    run_rank(Job(config, "base", "a"), ALONE)
    run = Path(config.run_dir("base"))
    for state in (run / "checkpoints" / "000000000080").glob("state*"):
        state.write_bytes(state.read_bytes()[:-1] + b"?")
    longer = helpers.make_config(project, images=160, keep_checkpoints=1)
    die(longer, 6, "b")  # at 48 images
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000000040"]


def test_a_step_is_told_once_and_starts_are_counted_over_all_launches(
    helpers, project: str, monkeypatch
):
    config = helpers.make_config(project, images=32)
    run = die(config, 1, "a")
    answers = iter([None, "preemption", None, None])
    monkeypatch.setattr(workers.notice, "agreed", lambda _: next(answers))
    monkeypatch.setattr(workers.notice, "after_save", lambda _: None)
    run_rank(Job(config, "base", "b"), ALONE)
    lines = [line for line in log.read(f"{run}/log.jsonl") if "loss" in line]
    assert [(line["images_seen"], line["starts"]) for line in lines] == [
        (8, 1), (8, 2), (16, 2), (24, 2), (32, 2),
    ]  # fmt: skip
    assert all(line["loss"] is not None for line in lines)
