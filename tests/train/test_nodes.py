"""Nodes that are killed, frozen, drained and added: the run is that of one quiet process."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.local_nodes import HEALTH, LocalNodes
from imagen import checkpoint, snapshot
from imagen import config as configs
from runtime import log, session
from train import audit
from train.config import TrainStageConfig
from train.job import Inputs, Job
from train.loop import World
from train.worker import run_rank

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # ten starts of workers, on a machine that may be busy
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray's own, in Ray
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of processes that we kill
]

PATIENCE_S = 240
BATCH = 8
EVERY = 50 * BATCH
"""Images between checkpoints: what a killed node may cost."""
STEPS = 220
DRIVER = """
import runpy
from runtime import session
session.settings()
from train import elastic
elastic.RESIZE_EVERY_S = 1.0
runpy.run_module("train", run_name="__main__")
"""
"""`python -m train` that looks for new machines every second, not every 30."""


@pytest.fixture
def machines() -> Iterator[LocalNodes]:
    session.settings()
    made = LocalNodes(HEALTH)
    try:
        yield made
    finally:
        made.close()


class Run:
    """A run in a process of its own, and what its log says."""

    def __init__(self, config: TrainStageConfig, folder: Path, address: str) -> None:
        self.config, self.output = config, folder / "output"
        path = folder / "config.yaml"
        path.write_text(configs.dump_yaml(config))
        command = [sys.executable, "-c", DRIVER, str(path), "member=base", "--address", address]
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def events(self) -> list[dict]:
        return log.read(f"{self.config.run_dir('base')}/log.jsonl")

    def wait(self, what: Callable[[list[dict]], bool]) -> list[dict]:
        """Wait for something in the log."""
        deadline = time.monotonic() + PATIENCE_S
        while not what(events := self.events()):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, f"{events[-3:]}\n{self.output.read_text()}"
            time.sleep(0.01)
        return events

    def stepping(self, starts: int, world: int) -> None:
        """Wait until so many starts were made, and the last one takes steps with so many ranks."""

        def there(events: list[dict]) -> bool:
            return len(started(events)) >= starts and steps_since_start(events) >= 3

        events = self.wait(there)
        assert [start["world_size"] for start in started(events)][starts - 1 :] == [world]

    def checkpointed(self) -> None:
        """Wait for a new checkpoint of this start, and some steps more."""

        def there(events: list[dict]) -> bool:
            names = [event.get("event") or "step" for event in events]
            last = len(names) - 1 - names[::-1].index("start")
            return (
                "checkpoint" in names[last:] and "step" in names[names.index("checkpoint", last) :]
            )

        self.wait(there)

    def end(self) -> None:
        assert self.process.wait(PATIENCE_S) == 0, self.output.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def started(events: list[dict]) -> list[dict]:
    return [event for event in events if event.get("event") == "start"]


def steps_since_start(events: list[dict]) -> int:
    names = [event.get("event") or "step" for event in events]
    return names[::-1].index("start") if "start" in names else 0


def lost(events: list[dict]) -> list[int]:
    """Return how many images each start but the first takes again."""
    seen, found = 0, []
    for event in events:
        if event.get("event") == "start":
            found.append(seen - event["images_seen"])
        elif "loss" in event:
            seen = event["images_seen"]
    return found[1:]


def curve(config: TrainStageConfig) -> dict[int, float]:
    """Return the loss of each step that counts: of the last start that took it."""
    events = log.read(f"{config.run_dir('base')}/log.jsonl")
    return {e["images_seen"]: e["loss"] for e in events if e.get("loss") is not None}


def final(config: TrainStageConfig) -> dict[str, torch.Tensor]:
    name = checkpoint.folder_name(config.of("base").total)
    return snapshot.load(f"{config.run_dir('base')}/snapshots/{name}").state_dict


def alone(config: TrainStageConfig) -> None:
    """Train in this process as a worker of one core does: more threads add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_rank(Job(config, "base", "alone"), World(0, 1, torch.device("cpu")))
    finally:
        torch.set_num_threads(threads)


def check_epochs(config: TrainStageConfig, steps: dict[int, list[str]]) -> None:
    """Check that no sample is seen twice in an epoch, and only the declared tail not at all."""
    order = Inputs.open(config, "base").order
    assert list(steps) == list(range(len(steps)))
    whole = len(steps) // order.steps_per_epoch
    assert whole >= 2
    for epoch in range(whole):
        first = epoch * order.steps_per_epoch
        keys = [key for step in range(first, first + order.steps_per_epoch) for key in steps[step]]
        assert len(set(keys)) == len(keys) == order.steps_per_epoch * BATCH
        assert order.samples - len(keys) < BATCH + config.of("base").lanes


def test_a_run_through_a_day_of_spot_kills_is_that_of_one_quiet_process(
    machines: LocalNodes, helpers, tmp_path: Path
):
    def config(name: str, images: int, workers: tuple[int, int]) -> TrainStageConfig:
        folder = tmp_path / name
        if not folder.exists():
            helpers.write_data(str(folder))
        often = {"checkpoint_every": EVERY, "log_every": BATCH, "snapshot_every": 10**7}
        return helpers.make_config(
            str(folder), images=images, workers=workers, lr=2e-4, audit=True, **often
        )

    first, second = machines.add(), machines.add()
    run = Run(config("elastic", 10**7, (1, 2)), tmp_path, machines.address)
    try:
        run.stepping(1, world=2)
        run.checkpointed()
        machines.send(second, signal.SIGKILL)
        run.stepping(2, world=1)
        third = machines.add()
        run.stepping(3, world=2)
        run.checkpointed()
        machines.send(third, signal.SIGSTOP)
        run.stepping(4, world=1)
        machines.add()
        run.stepping(5, world=2)
        machines.drain(first, 300)  # it stays for long: nobody waits for its end
        run.stepping(6, world=1)
        run.wait(lambda _: len(curve(run.config)) > STEPS)
    finally:
        run.kill()
    killed, grown, frozen, grown_again, drained = lost(run.events())
    assert 0 <= killed <= EVERY
    assert 0 <= frozen <= EVERY
    assert (grown, grown_again, drained) == (0, 0, 0)
    reasons = [e["reason"] for e in run.events() if e.get("event") == "checkpoint"]
    assert [reason for reason in reasons if reason != "interval"] == [
        *("resize", "resize", "preemption")
    ]

    images = max(curve(run.config)) + 20 * BATCH
    ends = [config("elastic", images, (1, 2)), config("two", images, (2, 2))]
    machines.add()
    for one in ends:  # the first goes on after its driver was killed
        last = Run(one, tmp_path, machines.address)
        try:
            last.end()
        finally:
            last.kill()
        assert started(last.events())[-1]["world_size"] == 2
    quiet = config("alone", images, (1, 1))
    alone(quiet)
    expected, taken, weights = curve(quiet), audit.committed(quiet.run_dir("base")), final(quiet)
    assert len(expected) >= STEPS
    check_epochs(quiet, taken)
    for one in ends:
        assert audit.committed(one.run_dir("base")) == taken
        assert curve(one) == pytest.approx(expected, rel=1e-4)
        found = final(one)
        assert all(torch.allclose(found[k], weights[k], atol=2e-4) for k in weights)
