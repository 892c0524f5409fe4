"""No rank goes on while another one still writes: its collectives would not wait that long.

Run as a program this file is two gloo ranks. Rank 0 is held in a snapshot, and twice in what it
does after a checkpoint: until rank 1 is seen where it must not be, or for `HELD_S`.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from imagen import checkpoint, snapshot
from imagen.errors import StorageError
from train import retention
from train.job import Job
from train.keeper import Keeper
from train.loop import Trainer, World
from train.saving import Saver
from train.worker import run_rank

ROOT = Path(__file__).parents[2]
HELD_S = 2.0
OPTIONS = {
    "images": 48, "microbatch": 4, "snapshot_every": 8, "checkpoint_every": 16, "log_every": 8,
}  # fmt: skip
WRONG = {"snapshot 8": "step at 16", "tidy 16": "step at 24", "tidy 48": "end"}
"""What rank 1 must not begin while rank 0 is held: whoever is to write next waits before it."""


def held(folder: Path, what: str) -> None:
    """Note whether rank 1 overtakes."""
    if what not in WRONG:
        return
    until = time.monotonic() + HELD_S
    mark = folder / WRONG[what]
    while time.monotonic() < until and not mark.exists():
        time.sleep(0.01)
    (folder / f"held in {what}").write_text("overtaken" if mark.exists() else "alone")


def hold(folder: Path) -> None:
    """Hold rank 0, this process, where it writes alone."""
    save, checkpoints = snapshot.save, retention.checkpoints

    def slow_save(where: str, *args: object) -> None:
        held(folder, f"snapshot {int(where[-12:])}")
        save(where, *args)  # type: ignore[arg-type]

    def slow_tidy(job: Job, now: int, *args: object) -> None:
        held(folder, f"tidy {now}")
        checkpoints(job, now, *args)  # type: ignore[arg-type]

    snapshot.save, retention.checkpoints = slow_save, slow_tidy


def mark(folder: Path) -> None:
    """Leave a mark at what rank 1, this process, begins."""
    step, lacks = Trainer.step, Keeper._lacks_snapshot

    def marked_step(self: Trainer, parts: list) -> None:
        (folder / f"step at {self.images_seen}").touch()
        step(self, parts)

    def marked_end(self: Keeper) -> bool:
        (folder / "end").touch()
        return lacks(self)

    Trainer.step, Keeper._lacks_snapshot = marked_step, marked_end


def fail_together(folder: Path, job: Job, world: World) -> None:
    """Have a task of rank 0 fail; note what each rank is told where they wait."""
    saver = Saver(job, world)

    def full() -> None:
        raise StorageError("the disk of rank 0 is full")

    try:
        saver.do(full if world.rank == 0 else None)
        saver.wait()
    except StorageError as err:
        (folder / f"told {world.rank}").write_text(err.message)


def be_rank(folder: Path, rank: int, job: Job) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    (hold, mark)[rank](folder)
    run_rank(job, world)
    fail_together(folder, job, world)
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> int:
    job = pickle.loads((folder / "job.pickle").read_bytes())
    torch.set_num_threads(1)
    pids = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            signal.alarm(200)
            try:
                be_rank(folder, rank, job)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


@pytest.mark.slow
def test_ranks_wait_for_what_only_rank_0_writes_and_hear_of_its_failure(helpers, tmp_path: Path):
    helpers.write_data(str(tmp_path))
    job = Job(helpers.make_config(str(tmp_path), **OPTIONS), "base", "one")
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    command = [sys.executable, __file__, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.name: path.read_text() for path in tmp_path.glob("held in *")}
    assert found == {f"held in {what}": "alone" for what in WRONG}
    assert checkpoint.saved(job.checkpoints) == [16, 32, 48]
    told = [(tmp_path / f"told {rank}").read_text() for rank in range(2)]
    assert told == ["the disk of rank 0 is full"] * 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
