"""Our training loop, as it is: `train.worker.run_rank` on a project on disk."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Case
from ours import config_of
from pictures import text_of

import train.worker
from imagen import checkpoint
from imagen.config import build, to_tree
from train.config import TrainStageConfig
from train.job import Job
from train.loop import Trainer, World

SAVED_S = 600.0
"""How long a checkpoint may take."""
LOWRES = {
    "kind": "base",
    "widths": [8],
    "blocks": [1],
    "self_attention": [False],
    "cross_attention": [False],
    "text_dim": 0,
    "cond_dim": 8,
}
"""The member before a super-resolution one; it is not trained."""


def stage_config(case: Case, folder: str, save_at: int) -> TrainStageConfig:
    """Return the project of a case; its one checkpoint is written after `save_at` steps."""
    member = {"size": case.size, "network": to_tree(config_of(case))}
    members = {"base": member}
    if case.lowres:
        members = {"base": {"size": case.lowres, "network": LOWRES}, "sr1": member}
    batch, never = case.batch, 10**9
    train = {
        "images": never, "global_batch": batch, "microbatch": batch, "lanes": 1, "lr": 1e-4,
        "checkpoint_every": save_at * batch, "snapshot_every": never, "log_every": 4 * batch,
        "validate": 0, "grid": 0,
    }  # fmt: skip
    text = to_tree(text_of(case.tokens))
    tree = {
        "name": "bench", "out": folder, "data": {"heldout": 0.0}, "text": text,
        "members": members, "train": {list(members)[-1]: train},
    }  # fmt: skip
    return build(TrainStageConfig, tree)


class Ended(Exception):
    """The benchmark has seen enough."""


class GatedTrainer(Trainer):
    """A trainer that begins each step only when it is let, so that two systems can take turns."""

    gate: "Callable[[Trainer], None]"

    def step(self, parts: list[Any]) -> None:
        """Wait, then take the step."""
        type(self).gate(self)
        super().step(parts)


class Loop:
    """Runs the loop in a thread, some steps at a time.

    From one gate to the next a step is all that the loop does: the step itself, log, checkpoint,
    and loading the next batch.
    """

    def __init__(self, case: Case, folder: str, save_at: int) -> None:
        config = stage_config(case, folder, save_at)
        self.job = Job(config, list(config.train)[-1], "bench")
        self.go, self.there = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = False
        self.failure: BaseException | None = None
        GatedTrainer.gate = staticmethod(self._wait)
        train.worker.Trainer = GatedTrainer
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._arrived()

    def _run(self) -> None:
        try:
            train.worker.run_rank(self.job, World(0, 1, torch.device("cpu")))
        except Ended:
            pass
        except BaseException as err:
            self.failure = err
        self.there.release()

    def _wait(self, trainer: Trainer) -> None:
        self.params = sum(w.numel() for w in trainer.weights)
        self.there.release()
        self.go.acquire()
        if self.ended:
            raise Ended

    def _arrived(self) -> None:
        self.there.acquire()
        if self.failure is not None:
            raise self.failure

    def step(self) -> None:
        """Take one turn of the loop."""
        self.go.release()
        self._arrived()

    def save(self) -> float:
        """Take the step that saves; return the seconds that training stood still for it.

        The checkpoint is written while training goes on; the log tells of it after a later step.
        """
        self.step()
        deadline = time.monotonic() + SAVED_S
        while not checkpoint.saved(self.job.checkpoints):
            assert time.monotonic() < deadline, f"no checkpoint after {SAVED_S:.0f} s"
            time.sleep(0.1)
        self.step()
        self.ended = True
        self.go.release()
        self.thread.join()
        log = Path(self.job.run_dir) / "log.jsonl"
        lines = map(json.loads, log.read_text().splitlines())
        return next(line["waited_s"] for line in lines if line.get("event") == "checkpoint")
