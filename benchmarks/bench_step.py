"""What a training step and a sampling step of the digits members cost, by ways of doing them.

CPU seconds of one thread, interleaved rounds, medians; read the ratios.

    python benchmarks/bench_step.py [ROUNDS]
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from imagen.config import load_config
from imagen.member import Given, MemberConfig, Text, TrainBatch, denoiser, loss
from imagen.network.unet import build
from train.config import TrainStageConfig

BATCH, TOKENS = 32, 8


def batch(member: MemberConfig, lowres: tuple[int, int] | None) -> TrainBatch:
    """Return a random training batch of a member."""
    c, d = member.network.channels, member.network.text_dim
    low = None if lowres is None else torch.randn(BATCH, c, *lowres)
    return TrainBatch(
        x0=torch.randn(BATCH, c, *member.shape),
        eps=torch.randn(BATCH, c, *member.shape),
        t=torch.rand(BATCH).double(),
        text=Text(torch.randn(BATCH, TOKENS, d), torch.ones(BATCH, TOKENS, dtype=torch.bool)),
        keep=torch.ones(BATCH),
        lowres=low,
        aug_level=None if low is None else torch.rand(BATCH).double(),
        aug_eps=None if low is None else torch.randn_like(low),
    )


def training(member: MemberConfig, given: TrainBatch, layout: torch.memory_format) -> Callable:
    """Return a function that runs forward and backward in a memory layout."""
    net = build(member.network).to(memory_format=layout)  # type: ignore[call-overload]
    net.stem.register_forward_pre_hook(lambda _, x: (x[0].contiguous(memory_format=layout),))

    def step() -> None:
        net.zero_grad()
        loss(net, member, given).mean().backward()

    return step


def sampling(member: MemberConfig, given: TrainBatch, batched: bool) -> Callable:
    """Return a function that runs one guided step: one batched pass, or two passes."""
    net = build(member.network).eval()
    scales = (3.0,) if batched else (1.0, 0.0)
    configs = [replace(member, sampling=replace(member.sampling, guidance_scale=w)) for w in scales]
    steps = [denoiser(net, config, Given(text=given.text)) for config in configs]

    @torch.inference_mode()
    def step() -> None:
        for denoise in steps:
            denoise(given.eps, 0.0)

    return step


def cpu_s(function: Callable) -> float:
    """Return CPU seconds of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def main() -> None:
    """Print a table of medians."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    config = load_config(TrainStageConfig, "pipeline/configs/digits.yaml")
    cases: dict[str, Callable] = {}
    for name, member in config.members.items():
        given = batch(member, config.previous_shape(name))
        last, first = torch.channels_last, torch.contiguous_format
        cases[f"{name} train step, channels last"] = training(member, given, last)
        cases[f"{name} train step, channels first"] = training(member, given, first)
        if name == "base":
            cases["base guided step, one batched pass"] = sampling(member, given, True)
            cases["base guided step, two passes"] = sampling(member, given, False)
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds + 2):
        for case, function in cases.items():
            times[case].append(cpu_s(function))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"torch {torch.__version__}, batch {BATCH}, one thread, {rounds} rounds\n")  # fmt: skip
    print("| case | ms of CPU (median) | images/CPU-s |\n|---|---|---|")
    for case, seconds in times.items():
        median = statistics.median(seconds[2:])  # the first two warm up
        print(f"| {case} | {1000 * median:.1f} | {BATCH / median:,.0f} |")


if __name__ == "__main__":
    main()
