"""Operations of a training step, and how many a device can do: the two sides of MFU.

MFU (model FLOPs utilization) is the operations that the model's mathematics needs, over those that
the device could have done in the same time. So what checkpointed levels compute again counts as
time, not as work (Chowdhery et al., PaLM, arXiv:2204.02311, App. B).
"""

import functools
import math
import time
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from imagen.member import MemberConfig, loss
from imagen.memory.fakes import build_without_values, train_batch
from imagen.memory.usage import Setting

TOKENS = 16
"""Text tokens that an image counts with, about a caption's: text is a small share of the work."""

Precision = Literal["fp32", "tf32", "bf16"]

PEAKS: dict[str, dict[Precision, float]] = {
    # dense TFLOPS of the vendor's data sheets; the first name that a card's name contains counts
    "B200": {"fp32": 75, "tf32": 1100, "bf16": 2250},
    "GH200": {"fp32": 67, "tf32": 494, "bf16": 989},
    "H200": {"fp32": 67, "tf32": 494, "bf16": 989},
    "H100 NVL": {"fp32": 60, "tf32": 418, "bf16": 835},
    "H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756},
    "H100": {"fp32": 67, "tf32": 494, "bf16": 989},
    "A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
    "A10G": {"fp32": 31.2, "tf32": 35, "bf16": 70},
    "A10": {"fp32": 31.2, "tf32": 62.5, "bf16": 125},
    "A30": {"fp32": 10.3, "tf32": 82, "bf16": 165},
    "A40": {"fp32": 37.4, "tf32": 74.8, "bf16": 149.7},
    "L40S": {"fp32": 91.6, "tf32": 183, "bf16": 362},
    "L40": {"fp32": 90.5, "tf32": 90.5, "bf16": 181},
    "L4": {"fp32": 30.3, "tf32": 60, "bf16": 121},
    "RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2},
    "RTX 3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71},
}


@functools.cache
def training_flops(config: MemberConfig, crop_px: int = 0) -> int:
    """Return the operations of a training step for one image: forward and backward pass.

    Two a multiply-add, of matrix products and convolutions, counted on tensors without values.
    """
    net = build_without_values(config.network)
    with torch.device("meta"):
        batch = train_batch(config, Setting(tokens=TOKENS, device="cpu", crop_px=crop_px))
        with FlopCounterMode(display=False) as counter:
            loss(net, config, batch).sum().backward()
    return counter.get_total_flops()


def peak(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """Return the operations a second of a device: of a known card its data sheet's, else measured.

    A card that may round float32 products to TF32 is held against its TF32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        rounds = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        tf32 = precision == "fp32" and rounds
        known = of_card(name, "tf32" if tf32 else precision)
        if known is not None:
            return known
    return _measured(str(device), precision)


def of_card(name: str, precision: Precision) -> float | None:
    """Return the operations a second of a card by name, None when it is not known."""
    words = name.replace("-", " ").split()
    for card, peaks in PEAKS.items():
        if all(word in words for word in card.split()):
            return peaks[precision] * 1e12
    return None


@functools.cache
def _measured(device: str, precision: Literal["fp32", "bf16"]) -> float:
    """Return the rate of a large matrix product with this process's threads.

    float32 counts also for bfloat16 where it is faster: a CPU without bfloat16 imitates it.
    """
    kinds = {torch.float32} | ({torch.bfloat16} if precision == "bf16" else set())
    return max(_rate(torch.device(device), kind) for kind in kinds)


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):  # the first one warms up
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
