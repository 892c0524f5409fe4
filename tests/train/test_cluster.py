"""Ray Train with everything that goes wrong: the result is always that of one quiet process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from benchmarks.local_nodes import family
from imagen import checkpoint, snapshot, storage
from imagen import config as configs
from imagen.errors import ImagenError
from runtime import log, session
from train import stage
from train.config import TrainStageConfig
from train.job import Inputs, Job
from train.loop import World
from train.worker import run_rank

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray's own, in Ray
]

PATIENCE_S = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with session.connect("local", num_cpus=4, resources={"imagen_sr1": 1}) as address:
        yield address


def alone(config: TrainStageConfig, member: str = "base") -> dict[str, torch.Tensor]:
    """Train in this process as a worker of one core does: more threads add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_rank(Job(config, member, "alone"), World(0, 1, torch.device("cpu")))
    finally:
        torch.set_num_threads(threads)
    return final(config, member)


def final(config: TrainStageConfig, member: str = "base") -> dict[str, torch.Tensor]:
    folder = checkpoint.folder_name(config.of(member).total)
    return snapshot.load(f"{config.run_dir(member)}/snapshots/{folder}").state_dict


def starts(config: TrainStageConfig, member: str = "base") -> list[dict]:
    events = log.read(f"{config.run_dir(member)}/log.jsonl")
    return [event for event in events if event.get("event") == "start"]


def seen(config: TrainStageConfig, member: str = "base") -> int:
    events = log.read(f"{config.run_dir(member)}/log.jsonl")
    return max((e["images_seen"] for e in events if "loss" in e), default=0)


def wait_for(what: Callable[[], bool], alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert alive(), "it ended before it could be interrupted"
        assert time.monotonic() < deadline, "it did not get there in time"
        time.sleep(0.01)


def two_projects(helpers, tmp_path: Path, **train: object) -> tuple[TrainStageConfig, ...]:
    made = []
    for name, workers in (("alone", (1, 1)), ("cluster", train.pop("workers", (1, 1)))):
        folder = str(tmp_path / name)
        helpers.write_data(folder)
        made.append(helpers.make_config(folder, workers=workers, **train))
    return tuple(made)


class InBackground(threading.Thread):
    """A run in a thread of its own; `end` waits for it and raises what it raised."""

    def __init__(self, config: TrainStageConfig) -> None:
        super().__init__(daemon=True)
        self.config, self.error = config, None
        self.start()

    def run(self) -> None:
        try:
            stage.run(self.config, "base")
        except BaseException as err:
            self.error = err

    def end(self) -> None:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "it did not end in time"
        if self.error is not None:
            raise self.error


class Hog:
    """Somebody else's actor."""

    def ready(self) -> None:
        pass


def test_a_run_waits_for_what_others_use_and_three_uneven_workers_train_what_one_does(
    cluster, helpers, tmp_path: Path, capsys: pytest.CaptureFixture
):
    # shares of 2, 3 and 3 images in microbatches of 2: one rank has fewer passes than the others;
    # with self-conditioning and levels computed again, no rank waits for a gradient in vain
    options = {"images": 80, "microbatch": 2, "checkpoint_levels": (0,)}
    quiet, config = (
        helpers.changed(one, "base", network={"self_conditioning": True})
        for one in two_projects(helpers, tmp_path, workers=(3, 3), **options)
    )
    hog: Any = ray.remote(Hog).options(num_cpus=2).remote()
    ray.get(hog.ready.remote())
    run, told = InBackground(config), [""]

    def waits() -> bool:
        told[0] += capsys.readouterr().err
        return "waiting for" in told[0]

    wait_for(waits, run.is_alive)
    assert (
        "train base: waiting for 3 workers: there is room for 2; others use 2 of 4 CPU" in told[0]
    )
    ray.kill(hog)
    run.end()
    assert [start["world_size"] for start in starts(config)] == [3]
    expected, found = alone(quiet), final(config)
    assert all(torch.allclose(found[k], expected[k], atol=2e-4) for k in expected)


def test_a_killed_worker_and_a_killed_controller_are_replaced_and_the_result_is_the_same(
    cluster, helpers, tmp_path: Path
):
    quiet, config = two_projects(
        helpers,
        tmp_path,
        images=3200,  # long enough that the kills below cannot come late
        global_batch=16,
        checkpoint_every=160,
        lr=2e-4,
        workers=(2, 2),
    )
    run = InBackground(config)
    wait_for(lambda: seen(config) >= 320, run.is_alive)
    os.kill(starts(config)[0]["pid"], signal.SIGKILL)
    wait_for(lambda: len(starts(config)) == 2, run.is_alive)
    more = starts(config)[1]["images_seen"] + 320
    wait_for(lambda: seen(config) >= more and saved(config) >= more - 160, run.is_alive)
    os.kill(process("TrainController"), signal.SIGKILL)
    run.end()
    first, second, last = starts(config)
    assert (first["images_seen"], first["world_size"]) == (0, 2)
    assert 0 < second["images_seen"] < last["images_seen"]
    expected, found = alone(quiet), final(config)
    assert all(torch.allclose(found[k], expected[k], atol=2e-3) for k in expected)


def saved(config: TrainStageConfig) -> int:
    return max(checkpoint.saved(f"{config.run_dir('base')}/checkpoints"), default=0)


def process(title: str) -> int:
    """Return the process below this one that Ray gave a title."""
    titles = {}
    for pid in family(os.getpid()):
        with contextlib.suppress(OSError):
            titles[pid] = Path("/proc", str(pid), "cmdline").read_text()
    (found,) = (pid for pid, text in titles.items() if title in text)
    return found


def test_an_error_of_the_users_is_told_once_and_not_retried(cluster, helpers, tmp_path: Path):
    folder = str(tmp_path)
    helpers.write_data(folder)
    config = helpers.make_config(folder)
    rename_sample(config, 100)  # behind our back, where the driver does not look
    with pytest.raises(ImagenError, match="has changed since it was indexed") as raised:
        stage.run(config, "base")
    assert "python -m preencode CONFIG" in str(raised.value.hint)
    assert len(starts(config)) == 1


def rename_sample(config: TrainStageConfig, position: int) -> None:
    """Change the key in the tar of the sample at a position of the run."""
    inputs = Inputs.open(config, "base")
    shard, at = inputs.order.batch(position // 8)
    number = int(shard[position % 8])
    row = int(inputs.prepared.rows(number, "train")[int(at[position % 8])])
    info = inputs.prepared.shards[number]
    offset = int(np.load(f"{config.index}/{info.name}.index.npy")[row]["image_offset"])
    with open(info.tar, "r+b") as file:
        file.seek(offset - 512)
        file.write(b"another")


def test_a_killed_driver_is_run_again_and_the_result_is_bit_equal(cluster, helpers, tmp_path: Path):
    quiet, config = two_projects(helpers, tmp_path, images=2400, checkpoint_every=200)
    path = str(tmp_path / "config.yaml")
    Path(path).write_text(configs.dump_yaml(config))
    command = [sys.executable, "-m", "train", path, "member=sr1", "--address", cluster]
    with open(tmp_path / "output", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        wait_for(lambda: seen(config, "sr1") >= 400, lambda: process.poll() is None)
        process.kill()
        process.wait()
        assert not storage.exists(f"{config.out}/sr1/run.json")
        again = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=output, text=True, check=True
        )
    assert again.stdout.startswith("sr1 trained: 2,400 images")
    first, last = starts(config, "sr1")[0], starts(config, "sr1")[-1]
    assert last["images_seen"] >= 200
    # the only machine that has room for sr1 was kept for the killed run; Ray waits 180 s
    assert last["time"] - first["time"] < 170
    expected, found = alone(quiet, "sr1"), final(config, "sr1")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
