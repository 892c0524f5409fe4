from pathlib import Path

import torch

from runtime.log import JsonLog
from train import audit
from train.data import Positions, shares
from train.job import Inputs, Job
from train.loop import World
from train.worker import run_rank


def write(run: Path, name: str, steps: dict[int, list[str]]) -> None:
    with JsonLog(str(run / audit.FOLDER / f"{name}.jsonl")) as lines:
        for step, keys in steps.items():
            lines.write(step=step, keys=keys)


def test_the_last_start_that_took_a_step_counts_and_ranks_are_in_order(tmp_path: Path):
    write(tmp_path, "20260101-00000-00000", {0: ["a"], 1: ["b"], 2: ["lost"]})
    write(tmp_path, "20260101-00001-00001", {2: ["d"]})
    write(tmp_path, "20260101-00001-00000", {2: ["c"], 3: ["x"]})
    write(tmp_path, "20260102-00000-00000", {3: ["e", "f"]})
    assert audit.committed(str(tmp_path)) == {0: ["a"], 1: ["b"], 2: ["c", "d"], 3: ["e", "f"]}


def test_no_audit_is_no_steps(tmp_path: Path):
    assert audit.committed(str(tmp_path)) == {}


def test_a_run_notes_the_keys_of_the_order(helpers, project: str):
    config = helpers.make_config(project, images=40, audit=True, microbatch=4)
    run_rank(Job(config, "base", "one"), World(0, 1, torch.device("cpu")))
    samples = Inputs.open(config, "base").samples(config, "base")
    parts = [samples.__getitems__(p).keys for p in Positions(shares(8, 4, 0, 1), 8, 0, 5)]
    wanted = {step: [*parts[2 * step], *parts[2 * step + 1]] for step in range(5)}
    assert audit.committed(config.run_dir("base")) == wanted
