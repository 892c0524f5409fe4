"""Measured peak memory of training and sampling steps against `imagen.memory`'s estimate.

Each case runs in a process of its own. On a CPU the peak is the largest resident set that the
kernel saw, less what was resident before the network was built, with one thread and an allocator
that gives memory back at once; on a GPU it is what PyTorch's allocator handed out.

    python benchmarks/bench_memory.py [REPEATS]            table of all cases
    python benchmarks/bench_memory.py --measure CASE       bytes of one case, as JSON
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imagen.diffusion.samplers import run
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path
from imagen.member import MemberConfig, denoiser, loss
from imagen.memory import Setting, sampling, training
from imagen.memory.estimate import build_optimizer
from imagen.memory.fakes import given, train_batch
from imagen.network.config import UNetConfig
from imagen.network.unet import build

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",  # a fixed one: freed memory is not kept for later
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    member: MemberConfig
    setting: Setting
    trains: bool = True


def _base(widths: tuple[int, ...], size: int) -> MemberConfig:
    low = (False, *[True] * (len(widths) - 1))
    network = UNetConfig(
        kind="base",
        widths=widths,
        blocks=(1,) * len(widths),
        self_attention=low,
        cross_attention=low,
        text_dim=512,
        cond_dim=256,
    )
    return MemberConfig(size=size, network=network)


def _sr(widths: tuple[int, ...], size: int) -> MemberConfig:
    lowest = (*[False] * (len(widths) - 1), True)
    network = UNetConfig(
        kind="efficient",
        widths=widths,
        blocks=(1,) * len(widths),
        self_attention=lowest,
        cross_attention=lowest,
        text_dim=512,
        cond_dim=256,
    )
    return MemberConfig(size=size, network=network)


SMALL_BASE, WIDE_BASE = _base((32, 64, 64), 64), _base((256, 384), 16)
SMALL_SR = _sr((32, 64, 64), 128)

CASES = {
    "base training, fp32": Case(SMALL_BASE, Setting(images=8)),
    "base training, bf16": Case(SMALL_BASE, Setting(images=12, precision="bf16")),
    "sr training, fp32": Case(SMALL_SR, Setting(images=4)),
    "sr training, fp32, all levels checkpointed": Case(
        SMALL_SR, Setting(images=8, checkpoint_levels=(0, 1, 2))
    ),
    "base training, mostly weights": Case(WIDE_BASE, Setting(images=4)),
    "base training, mostly weights, Adafactor": Case(
        WIDE_BASE, Setting(images=4, optimizer="adafactor")
    ),
    "base sampling, fp32": Case(SMALL_BASE, Setting(images=40), trains=False),
    "sr sampling, fp32": Case(SMALL_SR, Setting(images=8), trains=False),
}


def train_steps(case: Case, device: str) -> None:
    """Take an optimizer step, and a second one that accumulates; the last microbatch is full.

    The others are of one image: gradients, EMA and optimizer state are there all the same.
    """
    net = build(case.member.network).to(device)
    net.checkpoint_levels(case.setting.checkpoint_levels)
    weights = list(net.parameters())
    average = get_ema_multi_avg_fn(0.9)
    ema = [weight.detach().clone() for weight in weights]
    optimizer = build_optimizer(case.setting.optimizer, weights)
    for microbatches in ((1,), (1, case.setting.images)):
        for images in microbatches:
            backward(net, case, replace(case.setting, images=images), device)
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        with torch.no_grad():
            average(ema, list(weights), 0)
        optimizer.zero_grad(set_to_none=True)


def backward(net: torch.nn.Module, case: Case, setting: Setting, device: str) -> None:
    """Add the gradient of one microbatch."""
    with torch.device(device):
        batch = train_batch(case.member, setting)
    with autocast(case, device):
        losses = loss(net, case.member, batch)
    losses.sum().backward()


@torch.inference_mode()
def sample_steps(case: Case, device: str) -> None:
    """Take three steps of the member's sampler."""
    member = case.member
    sampler = replace(member.sampling, steps=3)
    net = build(member.network).to(device).eval()
    shape = (case.setting.images, member.network.channels, *member.shape)
    with torch.device(device), autocast(case, device):
        denoise = denoiser(net, member, given(member, case.setting))
        logsnrs = path(schedule(member.diffusion), sampler.steps, sampler.spacing)
        run(sampler, denoise, torch.randn(shape), logsnrs)


def autocast(case: Case, device: str) -> torch.autocast:
    """Return the autocast of the case's precision."""
    return torch.autocast(device, torch.bfloat16, enabled=case.setting.precision == "bf16")


def measure(case: Case) -> int:
    """Return the bytes that a case needs at its peak, in this process, on the device there is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = train_steps if case.trains else sample_steps
    steps(replace(case, setting=replace(case.setting, images=1)), device)  # loads all kernels
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        steps(case, device)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the peak to what is resident now: man proc_pid_clear_refs
    before = _status("VmRSS")
    steps(case, device)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def estimate(case: Case, device: str) -> int:
    """Return the estimate of a case."""
    setting = replace(case.setting, device=device)
    usage = (training if case.trains else sampling)(case.member, setting)
    return usage.total


def measure_apart(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return what a process of its own measures for a case."""
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment
    )
    return json.loads(done.stdout)


def measured_mb(name: str, environment: dict[str, str]) -> float:
    """Return megabytes that a process of its own measures for a case."""
    return measure_apart(name, environment)["bytes"] / 1e6


def main() -> None:
    """Print a table, or the bytes of one case."""
    if sys.argv[1:2] == ["--measure"]:
        torch.set_num_threads(1)
        print(json.dumps({"bytes": measure(CASES[sys.argv[2]])}))
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{machine}, torch {torch.__version__}, {repeats} processes a case\n")
    print("| case | estimated, MB | measured, MB | estimate / measured | as malloc comes, MB |")
    print("|---|---|---|---|---|")
    for name, case in CASES.items():
        guess = estimate(case, device) / 1e6
        low, *_, high = sorted(measured_mb(name, ENVIRONMENT) for _ in range(max(2, repeats)))
        usual = measured_mb(name, {"OMP_NUM_THREADS": "1"})
        ratio = f"{guess / high:.3f} to {guess / low:.3f}"
        cells = (name, f"{guess:.0f}", f"{low:.0f} to {high:.0f}", ratio, f"{usual:.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
