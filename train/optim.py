"""AdamW, its schedule in images, and its state as plain named tensors."""

from collections.abc import Mapping

import torch
from torch import nn

from train.config import TrainConfig

STATE = ("step", "exp_avg", "exp_avg_sq")


def build(net: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW; biases, gains and other vectors are not decayed.

    All else is, learned embeddings (null text, latents, labels) included.
    """
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Return the learning rate of the step that starts at `images_seen`.

    Rises linearly over `warmup_images`, stays, falls linearly to 0 over the last `decay_images`.
    """
    after = images_seen + config.global_batch
    rise = min(1.0, after / config.warmup_images) if config.warmup_images else 1.0
    left = config.total - images_seen
    fall = min(1.0, left / config.decay_images) if config.decay_images else 1.0
    return config.lr * min(rise, fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as `exp_avg/<weight>`, …; empty before the first step."""
    return {
        f"{key}/{name}": optimizer.state[weight][key]
        for name, weight in net.named_parameters()
        if weight in optimizer.state
        for key in STATE
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer, net: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `state_tensors` returned, on each weight's device and in its layout.

    The fused step walks through memory: moments must be laid out like their weight
    (channels last for convolutions), which files do not keep.
    """
    for name, weight in net.named_parameters():
        if f"step/{name}" in tensors:
            step, *moments = (tensors[f"{key}/{name}"] for key in STATE)
            values = [torch.empty_like(weight).copy_(moment) for moment in moments]
            step = step.to(weight.device, copy=True)
            optimizer.state[weight] = dict(zip(STATE, [step, *values], strict=True))
