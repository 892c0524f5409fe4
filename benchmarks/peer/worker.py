"""One system and one case in a process of its own: JSON requests in, JSON replies out, a line each.

    python worker.py ours|theirs

`start` builds; `step` runs once and tells wall and CPU seconds; `end` tells memory and FLOP.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import read
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

SAMPLING_STEPS = 2
"""Steps of one sampling call: the sampler's own arithmetic between them is part of it."""


def system(name: str) -> Any:
    """Return the class of a system; only its own environment can import it."""
    if name == "theirs":
        from theirs import Theirs

        return Theirs
    from ours import Ours

    return Ours


def resident_bytes() -> int:
    """Return the resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes(device: str) -> int:
    """Return the highest memory so far: of the GPU, or resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def touch_kernels() -> None:
    """Page in the libraries of convolutions and matrix products, which both systems need."""
    conv = nn.Conv2d(8, 8, 3)
    conv(torch.randn(1, 8, 8, 8)).square().sum().backward()
    torch.randn(64, 64) @ torch.randn(64, 64)


class Job:
    """The steps of one case."""

    def __init__(self, name: str, request: dict[str, Any]) -> None:
        self.name, self.what, self.device = name, request["what"], request["device"]
        side = system(name)
        touch_kernels()
        self.memory_start = 0 if self.device == "cuda" else resident_bytes()
        self.side = side(read(request["case"]), self.device)
        if request["compile"]:
            self.side.compile()
        self.run = self.training() if self.what == "train" else self.sampling()

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return bf16 on a GPU, nothing on a CPU."""
        on_gpu = self.device == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()

    def training(self) -> Callable[[], Any]:
        """Return one optimizer step."""
        self.side.net.train()
        optimizer = self.side.optimizer()

        def step() -> None:
            with self.autocast():
                loss = self.side.loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def sampling(self) -> Callable[[], Any]:
        """Return `SAMPLING_STEPS` steps at guidance 3."""
        self.side.net.eval()
        sample = self.side.sampler(SAMPLING_STEPS, 3.0)

        def step() -> None:
            with self.autocast():
                sample()

        return step

    def timed(self) -> dict[str, float]:
        """Run once and return the seconds of one step."""
        steps = 1 if self.what == "train" else SAMPLING_STEPS
        wall, cpu = time.perf_counter(), time.process_time()
        self.run()
        if self.device == "cuda":
            torch.cuda.synchronize()
        ends = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_s": ends[0] / steps, "cpu_s": ends[1] / steps}

    def flop(self) -> dict[str, float]:
        """Return FLOP of the step, and of training's forward pass, counted on a fresh copy."""
        name, case = self.name, self.side.case
        del self.side, self.run
        self.side = system(name)(case, self.device)
        if self.what == "sample":
            self.side.net.requires_grad_(False)  # the counter trips over views of parameters
            return {"flop": _count(self.sampling()) / SAMPLING_STEPS}
        return {"flop": _count(self.training()), "flop_forward": _count(self.side.loss)}

    def end(self) -> dict[str, float]:
        """Return the peak memory over the start, and FLOP (counted after it)."""
        peak = peak_bytes(self.device) - self.memory_start
        return {"peak_bytes": peak, **self.flop()}


def _count(run: Callable[[], Any]) -> int:
    # attention on a CPU is counted only in its plain form
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_peak() -> float:
    """Return the bf16 FLOP per second of a large matrix product on the GPU."""
    n, repeats = 8192, 30
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return repeats * 2 * n**3 / (time.perf_counter() - began)


def answer(request: dict[str, Any], job: Job | None) -> tuple[dict[str, Any], Job | None]:
    """Return the reply to a request, and the job that is under way."""
    match request["do"]:
        case "matmul":
            return {"flop_per_s": matmul_peak()}, job
        case "start":
            torch.set_num_threads(request["threads"])
            torch.manual_seed(0)
            job = Job(sys.argv[1], request)
            params = sum(p.numel() for p in job.side.net.parameters())
            return {"params": params}, job
    assert job is not None, "a job starts first"
    return job.timed() if request["do"] == "step" else job.end(), job


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr
    job: Job | None = None
    for line in sys.stdin:
        reply, job = answer(json.loads(line), job)
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
