"""`kill -9` while checkpoints are written: the newest manifest is always whole.

Run as a program this file does the killing: one process that imports, then a fork for each victim.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imagen import checkpoint
from runtime import log
from train.job import Job
from train.loop import World
from train.worker import run_rank

ROOT = Path(__file__).parents[2]
KILLS = 30
LAST = 800
OPTIONS = {  # a checkpoint after each step, a snapshot after each third
    "images": LAST, "checkpoint_every": 8, "snapshot_every": 24, "log_every": 40,
    "keep_checkpoints": 2,
}  # fmt: skip


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(300)
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(job: Job) -> None:
    run_rank(job, World(0, 1, torch.device("cpu")))


def kill_at_random(job: Job, draw: random.Random, step_s: float) -> dict[str, int]:
    """Train until a few more checkpoints are there and up to two steps have passed; kill; look."""
    before = max(checkpoint.saved(job.checkpoints), default=0)
    wanted, later = draw.randrange(3), draw.uniform(0, 2 * step_s)
    pid = fork(lambda: train(job))
    while sum(n > before for n in checkpoint.saved(job.checkpoints)) < wanted:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError("training ended before it was killed")
    time.sleep(later)  # a random moment: nothing waits for it
    published = max(checkpoint.saved(job.checkpoints), default=0)
    os.kill(pid, signal.SIGKILL)
    if end_of(pid) != -signal.SIGKILL:
        raise RuntimeError("training ended before it was killed")
    newest = max(checkpoint.saved(job.checkpoints), default=0)
    if newest:
        checkpoint.load(job.checkpoints, newest)  # every byte of it is verified
    own = Path(job.checkpoints, checkpoint.folder_name(newest + 8))  # what it was writing
    return {"published": published, "newest": newest, "torn": own.exists()}


def kill_at_rename(folder: str, number: int) -> list[int]:
    """Save, and save again until a file of the second checkpoint is to get its name."""
    tensors = {"w": torch.ones(3)}

    def save() -> None:
        checkpoint.save(folder, 1, tensors, {})
        named = []

        def dying(give_name: Callable[[str, str], None]) -> Callable[[str, str], None]:
            def give(a: str, b: str) -> None:
                named.append(b)
                if len(named) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                give_name(a, b)

            return give

        os.replace, os.link = dying(os.replace), dying(os.link)  # a new manifest is linked
        checkpoint.save(folder, 2, tensors, {})

    if end_of(fork(save)) != -signal.SIGKILL:
        raise RuntimeError("the writer was not killed")
    left = checkpoint.saved(folder)
    checkpoint.save(folder, 2, tensors, {})
    checkpoint.load(folder, 2)
    return left


def main(folder: Path) -> int:
    quiet, job = pickle.loads((folder / "jobs.pickle").read_bytes())
    torch.set_num_threads(1)
    draw, kills = random.Random(5), []
    train(quiet)  # here, so that no victim needs to begin with all that torch does once
    times = [event["time"] for event in log.read(f"{quiet.run_dir}/log.jsonl") if "loss" in event]
    step_s = (times[-1] - times[0]) / (LAST // 8)
    for number in range(KILLS):
        one = Job(job.config, job.member, f"launch{number:03d}")
        kills.append(kill_at_random(one, draw, step_s))
    end = end_of(fork(lambda: train(job)))
    renames = [kill_at_rename(str(folder / f"rename{n}"), n) for n in (1, 2, 3)]
    (folder / "told.json").write_text(json.dumps({"kills": kills, "end": end, "left": renames}))
    return 0


@pytest.fixture(scope="module")
def told(helpers, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("kills")
    jobs = []
    for name in ("quiet", "killed"):
        helpers.write_data(str(folder / name))
        jobs.append(Job(helpers.make_config(str(folder / name), **OPTIONS), "base", "zz-last"))
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}  # fork after backward
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {f"{job.config.out.rpartition('/')[2]} run": job.run_dir for job in jobs}
    return json.loads((folder / "told.json").read_text()) | runs


@pytest.mark.slow
def test_after_each_of_30_kills_the_newest_manifest_loads(told: dict):
    assert len(told["kills"]) == KILLS
    assert all(kill["newest"] >= kill["published"] for kill in told["kills"])
    assert sum(kill["torn"] for kill in told["kills"]) > 2  # many died while they wrote
    progress = [kill["newest"] for kill in told["kills"]]
    assert progress == sorted(progress)
    assert progress[-1] > progress[0]


@pytest.mark.slow
def test_training_goes_on_from_there_and_ends_as_if_nothing_had_been(told: dict):
    events = log.read(f"{told['killed run']}/log.jsonl")
    starts = [event["images_seen"] for event in events if event.get("event") == "start"]
    newest = [0, *(kill["newest"] for kill in told["kills"])]
    assert set(starts) <= set(newest)
    assert starts[-1] == newest[-1]
    assert not [event for event in events if event.get("event") == "damaged_checkpoint"]
    assert told["end"] == 0
    ends = []
    for run in (told["quiet run"], told["killed run"]):
        final = checkpoint.load(f"{run}/checkpoints", LAST)
        (weights,) = Path(run, "snapshots", checkpoint.folder_name(LAST)).glob("*.safetensors")
        ends.append((final.tensors, weights.read_bytes()))
    (ours, snapshot), (theirs, their_snapshot) = ends
    assert snapshot == their_snapshot
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_what_killed_writers_left_is_swept(told: dict):
    folder = Path(told["killed run"], "checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == [
        checkpoint.folder_name(images_seen) for images_seen in (LAST - 8, LAST)
    ]
    assert not list(folder.glob("*/*.tmp-*"))


@pytest.mark.slow
def test_a_writer_killed_before_any_of_its_renames_leaves_the_older_one(told: dict):
    assert told["left"] == [[1], [1], [1]]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
