"""DDP and FSDP2 on real gloo ranks, and checkpoints that pass between worlds.

Run as a program this file is the ranks: one process that imports, then a fork for each rank.
"""

import os
import pickle
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from imagen import checkpoint, sharded, snapshot, storage
from imagen.errors import StorageError
from runtime import log
from train import audit
from train.job import Job
from train.loop import World, even_share
from train.worker import run_rank

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def worlds(folder: Path, plan: list[tuple[int, Job]]) -> None:
    """Run each job on so many ranks, one after another, in processes of their own."""
    (folder / "plan.pickle").write_bytes(pickle.dumps(plan))
    # a hint that DDP could be faster, of weights with an axis of length 1
    quiet = ("-W", "error", "-W", "ignore:Grad strides do not match:UserWarning")
    command = [sys.executable, *quiet, __file__, str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def main(folder: Path) -> int:
    plan = pickle.loads((folder / "plan.pickle").read_bytes())
    torch.set_num_threads(1)
    while plan[0][0] == 1:  # here, so that no rank needs to begin with all that torch does once
        _, job = plan.pop(0)
        run_rank(job, World(0, 1, CPU))
        if job.launch == "spoiled":
            spoil(job)
    pids = set()
    for rank in range(max(size for size, _ in plan)):
        pid = os.fork()
        if not pid:
            signal.alarm(200)  # a rank whose peers or parent are gone may wait for ever
            os._exit(be_rank(folder, rank, plan))
        pids.add(pid)
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        if status:
            for other in pids:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def spoil(job: Job) -> None:
    """Change a byte of the newest checkpoint that only rank 0 reads: of an average."""
    found = checkpoint.look_into(job.checkpoints, max(checkpoint.saved(job.checkpoints)))
    part = found.layout["ema/out.weight"].slices[0]
    path = Path(found.folder, part.file)
    content = bytearray(path.read_bytes())
    content[part.start] ^= 1
    path.write_bytes(content)


def be_refused(folder: Path, rank: int) -> None:
    """Save a checkpoint, of which one rank can write nothing; note what each is told."""
    put = storage.put

    def full(path: str, data: bytes, **_: object) -> bool:
        raise StorageError(f"cannot write `{path}`: the disk of rank 1 is full")

    if rank == 1:
        storage.put = full
    staged = sharded.Staged({f"w{rank}": torch.ones(3)})
    try:
        sharded.write(str(folder / "refused"), 8, staged, {}, dist.new_group(backend="gloo"))
    except StorageError as err:
        put(str(folder / f"told{rank}"), err.message.encode())
    storage.put = put


def be_rank(folder: Path, rank: int, plan: list[tuple[int, Job]]) -> int:
    try:
        for number, (size, job) in enumerate(plan):
            if rank < size:
                store = f"file://{folder}/store{number}"
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
                if job.launch == "refused":
                    be_refused(folder, rank)
                else:
                    run_rank(job, World(rank, size, CPU))
                dist.barrier()
                dist.destroy_process_group()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def weights(run: str, images_seen: int, name: str = "ema") -> dict[str, torch.Tensor]:
    folder = f"{run}/snapshots/{checkpoint.folder_name(images_seen)}"
    return snapshot.load(folder).state_dict if name == "ema" else snapshot.load_extra(folder, name)


def far(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of weights."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max()) for n in ours if ours[n].numel())


OPTIONS = {  # 9 images on two ranks are 5 and 4: with microbatches of 1 the second fills up
    "global_batch": 9, "microbatch": 1, "lanes": 3, "images": 27, "checkpoint_every": 9,
    "snapshot_every": 27, "log_every": 9, "audit": True, "validate": 1, "lr": 1e-3,
    "ema_profiles": (0.05, 0.1), "clip_norm": 0.5, "checkpoint_levels": (0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(helpers, tmp_path_factory: pytest.TempPathFactory) -> types.SimpleNamespace:
    """Runs of the same training on several worlds."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("ranks")
    helpers.write_data(str(data))

    def job(name: str, launch: str = "1", **train: object) -> Job:
        out = folder / name
        out.mkdir(exist_ok=True)
        for part in ("data", "index", "embeddings"):
            if not (out / part).exists():
                (out / part).symlink_to(data / part)
        return Job(helpers.make_config(str(out), **{**OPTIONS, **train}), "base", launch)

    plan = [
        (1, job("grown", images=9)),
        (1, job("alone")),
        (1, job("torn", "spoiled", images=18)),
        (2, job("ddp")),
        (2, job("fsdp", parallel="fsdp")),
        (2, job("grown", "2", images=18, parallel="fsdp")),
        (3, job("grown", "3")),
        (3, job("shrunk", images=9, parallel="fsdp")),
        (2, job("torn", "2")),
        (2, job("torn", "refused")),
    ]
    worlds(folder, plan)
    run_rank(job("shrunk", "2"), World(0, 1, CPU))
    names = ("alone", "ddp", "fsdp", "grown", "shrunk", "torn")
    return types.SimpleNamespace(folder=folder, **{n: job(n).run_dir for n in names})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "raw", "ema@0.1"])
def test_shards_train_as_whole_copies_do(runs, kind: str):
    assert far(weights(runs.fsdp, 27, kind), weights(runs.ddp, 27, kind)) < 1e-5
    assert far(weights(runs.fsdp, 27, kind), weights(runs.fsdp, 0, kind)) > 1e-4  # it moves


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grown", "shrunk", "ddp", "torn"])
def test_worlds_that_read_each_others_checkpoints_end_as_one_that_went_alone(runs, name: str):
    """Grown: one rank, two with shards, three; shrunk: three with shards, then one."""
    run = getattr(runs, name)
    for kind in ("ema", "raw", "ema@0.05"):
        assert far(weights(run, 27, kind), weights(runs.alone, 27, kind)) < 1e-5
    events = log.read(f"{run}/log.jsonl")
    sizes = [event["world_size"] for event in events if event.get("event") == "start"]
    assert sizes == {"grown": [1, 2, 3], "shrunk": [3, 1], "ddp": [2], "torn": [1, 2]}[name]
    losses = {event["images_seen"]: event["loss"] for event in events if "loss" in event}
    alone = [event for event in log.read(f"{runs.alone}/log.jsonl") if "loss" in event]
    assert losses == pytest.approx({e["images_seen"]: e["loss"] for e in alone}, rel=1e-5)


@pytest.mark.slow
def test_all_ranks_fall_back_when_one_finds_a_changed_byte(runs):
    events = log.read(f"{runs.torn}/log.jsonl")
    (damaged,) = [event for event in events if event.get("event") == "damaged_checkpoint"]
    assert damaged["checkpoint"] == 18
    assert "has checksum" in damaged["reason"]
    assert [e["images_seen"] for e in events if e.get("event") == "start"] == [0, 9]


@pytest.mark.slow
def test_all_ranks_are_told_when_one_cannot_write_and_nothing_is_published(runs):
    told = [(runs.folder / f"told{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "the disk of rank 1 is full" in told[0]
    assert checkpoint.saved(str(runs.folder / "refused")) == []


@pytest.mark.slow
def test_the_audit_shows_the_same_batches_on_every_world(runs):
    alone = audit.committed(runs.alone)
    assert list(alone) == [0, 1, 2]
    assert all(len(set(keys)) == 9 for keys in alone.values())
    for name in ("ddp", "fsdp", "grown", "shrunk"):
        assert audit.committed(getattr(runs, name)) == alone


@pytest.mark.slow
def test_every_rank_writes_its_share_of_a_checkpoint(runs):
    for run, ranks in ((runs.ddp, 2), (runs.fsdp, 2), (runs.alone, 1)):
        folder = Path(run, "checkpoints", checkpoint.folder_name(27))
        sizes = {path.name.split("-")[2]: path.stat().st_size for path in folder.glob("state-*")}
        assert len(sizes) == ranks
        assert max(sizes.values()) < 1.3 * min(sizes.values())
    found = checkpoint.load(f"{runs.fsdp}/checkpoints", 27)
    theirs = checkpoint.load(f"{runs.ddp}/checkpoints", 27)
    assert far(found.tensors, theirs.tensors) < 1e-5
    assert found.meta["identity"] == theirs.meta["identity"]


def test_shares_are_even_and_leave_nothing_out():
    tensors = {f"w{i}": torch.zeros(size) for i, size in enumerate((7, 1, 5, 3, 3, 9, 2))}
    shares = [even_share(tensors, rank, 3, ahead=4 * 8) for rank in range(3)]
    assert set().union(*shares) == set(tensors)
    assert sum(map(len, shares)) == len(tensors)
    loads = [sum(tensors[name].numel() for name in share) for share in shares]
    assert sorted([loads[0] + 8, *loads[1:]]) == [12, 13, 13]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
