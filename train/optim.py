"""AdamW and Adafactor, their schedule in images, and their state as plain named tensors.

`lr` means the same for both: the size of a step, as the root mean square over the elements of a
weight. AdamW takes steps of about `lr` by construction. Adafactor (Shazeer & Stern,
arXiv:1804.04235) has a scale of its own, which is set aside here (`_adafactor`).
"""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from imagen.errors import ConfigError
from train.config import TrainConfig

NO_SHARDS = "optimizer adafactor cannot train a member that is cut among workers (parallel fsdp)"
"""torch 2.13's Adafactor takes column norms of a cut gradient in place, which DTensor refuses."""
_TINY = 1e-18
"""Least gradient that Adafactor tells from 0: its square is a float32 (1e-36), so that 0 gives 0,
not 0 * infinity. torch's own 1e-7 is more than most gradients of a large network."""


def build(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer; biases, gains and other vectors are not decayed.

    All else is, learned embeddings (null text, latents, labels) included. Raises ConfigError when
    the weights are cut among workers and the optimizer cannot have that.
    """
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if any(isinstance(p, DTensor) for p in net.parameters()):
        raise ConfigError(NO_SHARDS, "set optimizer=adamw or parallel=ddp")
    return _adafactor(groups, config)


def _adafactor(groups: list[dict[str, object]], config: TrainConfig) -> torch.optim.Adafactor:
    """Return Adafactor whose steps are at most `lr` large, as AdamW's about are.

    torch multiplies lr by max(eps2, RMS of the weight) (Algorithm 5): with eps2 = 1 that is 1,
    except for weights with a larger RMS, which move in proportion. It also takes
    min(lr, 1/sqrt(step)), which bites after 1/lr^2 steps: a million at 1e-3. Updates are clipped
    to RMS d = 1. No momentum; the second moment's decay is 1 - step^-0.8 (Section 7.2).
    """
    return torch.optim.Adafactor(groups, lr=config.lr, eps=(_TINY, 1.0), d=1.0, foreach=True)


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Return the learning rate of the step that starts at `images_seen`.

    Rises linearly over `warmup_images`, stays, falls to 0 over the last `decay_images`: linearly,
    or as half a cosine.
    """
    after = images_seen + config.global_batch
    rise = min(1.0, after / config.warmup_images) if config.warmup_images else 1.0
    left = config.total - images_seen
    fall = min(1.0, left / config.decay_images) if config.decay_images else 1.0
    if config.decay == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
    return config.lr * min(rise, fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state of every weight that the first step would make: zeros.

    So that a checkpoint can be read into it, and one that is written before all weights had a
    gradient is complete.
    """
    fresh = _fresh_moments if isinstance(optimizer, torch.optim.AdamW) else _fresh_means
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                optimizer.state[weight] = fresh(weight.detach())


def _fresh_moments(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the state of AdamW, laid out like the weight: the fused step walks through memory."""
    return {
        "step": torch.zeros((), device=weight.device),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.zeros_like(weight),
    }


def _fresh_means(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the state of Adafactor: means over the last two dimensions, or all of a vector."""
    step = torch.zeros(())  # on the CPU: it is read each step
    if weight.ndim < 2:
        return {"step": step, "variance": torch.zeros_like(weight)}
    *other, rows, columns = weight.shape
    row_var, col_var = (weight.new_zeros((*other, *two)) for two in ((rows, 1), (1, columns)))
    return {"step": step, "row_var": row_var, "col_var": col_var}


def state_tensors(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer's live state as `exp_avg/<weight>`, …: complete after `prepare_state`.

    Values that are copied into these tensors are the optimizer's state.
    """
    return {
        f"{key}/{name}": value
        for name, weight in net.named_parameters()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer, net: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `state_tensors` returned, on each weight's device and in its layout.

    The fused step walks through memory: moments must be laid out like their weight
    (channels last for convolutions), which files do not keep. Names that are not there stay as
    they are: zeros in a new optimizer.
    """
    prepare_state(optimizer)
    for name, value in state_tensors(optimizer, net).items():
        if name in tensors:
            value.copy_(tensors[name])
