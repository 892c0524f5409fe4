"""The loss curve of two tiny runs, number by number.

A change that is meant to leave the numbers alone leaves the file alone. To change it on purpose:
`IMAGEN_GOLDEN=write pytest tests/train/test_golden.py`, and say why in the commit.
"""

import os
import platform
import re
from pathlib import Path

import numpy as np
import torch

from runtime import log
from train.job import Job
from train.loop import World
from train.worker import run_rank

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_tiny.txt"


def machine() -> str:
    """What the last bits depend on: kernels and block sizes are chosen by the processor."""
    path = Path("/proc/cpuinfo")
    about = path.read_text() if path.exists() else ""
    named = ("model name", "cpu family", "model", "stepping", "cache size")
    found = (re.search(rf"^{name}\s*:\s*(.*)$", about, re.MULTILINE) for name in named)
    processor = " ".join(m[1] for m in found if m) or platform.processor()
    return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()} {processor}"


def curve(helpers, project: str, member: str) -> list[float]:
    config = helpers.make_config(project, warmup_images=40, decay_images=80)
    run_rank(Job(config, member, "golden"), World(0, 1, torch.device("cpu")))
    return [e["loss"] for e in log.read(f"{project}/{member}/log.jsonl") if "loss" in e]


def test_the_loss_curves_are_those_of_the_golden_file(helpers, project: str):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses = [(m, loss) for m in ("base", "sr1") for loss in curve(helpers, project, m)]
    finally:
        torch.set_num_threads(threads)
    assert len(losses) == 40
    text = f"# {machine()}\n" + "".join(f"{m} {loss!r}\n" for m, loss in losses)
    if os.environ.get("IMAGEN_GOLDEN") == "write":
        GOLDEN.write_text(text)
    golden = GOLDEN.read_text()
    if golden.splitlines()[0] == f"# {machine()}":
        assert text == golden
    else:  # another kind of processor adds in another order
        numbers = [float(line.split()[1]) for line in golden.splitlines()[1:]]
        assert np.allclose([loss for _, loss in losses], numbers, rtol=1e-3)
