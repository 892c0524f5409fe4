"""Peak memory of a training step and of a sampling step, found by running them on fake tensors.

The real network, loss, backward pass, optimizer and sampler run; only no tensor has values. What
the kernels of a device allocate for themselves, such as workspaces of convolutions, is not seen.
"""

import functools
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from imagen.diffusion.samplers import run
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path
from imagen.errors import ConfigError
from imagen.member import MemberConfig, denoiser, loss
from imagen.memory.fakes import (
    autocast,
    build_without_values,
    follow_cuda,
    given,
    make_fake,
    train_batch,
)
from imagen.memory.tracker import Trace, Tracker
from imagen.memory.usage import Optimizer, Setting, Usage
from imagen.network.unet import UNet

_FEW = 2
"""Images of the run that others are derived from: with one, layouts can be ambiguous."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Memory as a function of the number of images, from two runs."""

    fixed: Usage
    """What does not depend on the number of images."""
    few: Trace
    """A run with `_FEW` images."""
    one_more: Trace
    """A run with one image more."""

    def at(self, images: int) -> Usage:
        """Return what a step with this many images needs."""
        return _with_trace(self.fixed, self.few.step_on(self.one_more, images - _FEW))


def training(config: MemberConfig, setting: Setting) -> Usage:
    """Return what a training step needs. Raises ConfigError.

    It is the largest of all microbatches and steps: gradients of earlier microbatches, EMA and
    optimizer state are there.
    """
    fixed = training_fixed(config, setting.optimizer)
    return _with_trace(fixed, _training_trace(config, _of_trace(setting)))


def training_curve(config: MemberConfig, setting: Setting) -> Curve:
    """Return what a training step needs for any number of images. Raises ConfigError."""
    fixed = training_fixed(config, setting.optimizer)
    one, two = (replace(_of_trace(setting), images=_FEW + i) for i in (0, 1))
    return Curve(fixed, _training_trace(config, one), _training_trace(config, two))


def sampling(config: MemberConfig, setting: Setting) -> Usage:
    """Return what the member's sampler needs, with the guidance of its config."""
    weights = _weights(config)
    return _with_trace(weights, _sampling_trace(config, _of_trace(setting)))


def sampling_curve(config: MemberConfig, setting: Setting) -> Curve:
    """Return what the member's sampler needs for any number of images."""
    one, two = (replace(_of_trace(setting), images=_FEW + i) for i in (0, 1))
    traces = (_sampling_trace(config, one), _sampling_trace(config, two))
    return Curve(_weights(config), *traces)


def _of_trace(setting: Setting) -> Setting:
    return replace(setting, optimizer="adamw")  # has no part in forward and backward pass


def _with_trace(fixed: Usage, trace: Trace) -> Usage:
    blocks = trace.at_peak()
    activations = [block for block in blocks if not block.is_cast]
    named = [block for block in activations if block.module]
    return replace(
        fixed,
        casts=sum(block.num_bytes for block in blocks if block.is_cast),
        activations=sum(block.num_bytes for block in activations),
        largest=max(named, key=lambda block: block.num_bytes, default=None),
    )


def _weights(config: MemberConfig) -> Usage:
    weights = list(build_without_values(config.network).parameters())
    return Usage(parameters=sum(w.numel() for w in weights), weights=num_bytes(weights))


def num_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of the elements of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def build_optimizer(name: Optimizer, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer by name, as a GPU runs it: AdamW fused, Adafactor over lists."""
    if name == "adamw":
        return torch.optim.AdamW(weights, fused=True)
    return torch.optim.Adafactor(weights, foreach=True)


@functools.cache
def training_fixed(config: MemberConfig, name: Optimizer) -> Usage:
    """Return weights, gradients, optimizer state, EMA, and what the optimizer's step needs."""
    net = build_without_values(config.network)
    with _fake(net):
        weights = list(net.parameters())
        gradients = _give_gradients(weights)
        optimizer = build_optimizer(name, weights)
        with Tracker():  # answers what the step reads of values that are not there
            optimizer.step()  # the state exists from the first step on
        values = (value for state in optimizer.state.values() for value in state.values())
        state = [value for value in values if isinstance(value, torch.Tensor)]
        with Tracker([*weights, *gradients, *state]) as tracker:
            nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
            optimizer.step()
    return replace(
        _weights(config),
        gradients=num_bytes(gradients),
        optimizer=num_bytes(state),
        ema=num_bytes(weights),
        update=sum(block.num_bytes for block in tracker.trace.at_peak()),
    )


@functools.cache
def _training_trace(config: MemberConfig, setting: Setting) -> Trace:
    check_fits(config, setting)
    net = _network(config, setting)
    net.checkpoint_levels(setting.checkpoint_levels)
    with _fake(net):
        gradients = _give_gradients(list(net.parameters()))
        tracker = Tracker([*net.state_dict().values(), *gradients])
        with tracker, tracker.naming(net):
            batch = train_batch(config, setting)
            with autocast(setting):
                losses = loss(net, config, batch)
            losses.sum().backward()
        return tracker.trace


@functools.cache
def _sampling_trace(config: MemberConfig, setting: Setting) -> Trace:
    two_steps = replace(config.sampling, steps=2)  # the second has what the sampler remembers
    logsnrs = path(schedule(config.diffusion), two_steps.steps, two_steps.spacing)
    shape = (setting.images, config.network.channels, *config.shape)
    net = _network(config, setting).eval()
    with _fake(net), torch.no_grad():
        tracker = Tracker(list(net.state_dict().values()))
        with tracker, tracker.naming(net), autocast(setting):
            denoise = denoiser(net, config, given(config, setting))
            run(two_steps, denoise, torch.randn(shape), logsnrs, lambda _: torch.randn(shape))
        return tracker.trace


def _network(config: MemberConfig, setting: Setting) -> UNet:
    net = build_without_values(config.network)
    if setting.device == "cuda":
        follow_cuda(net)
    return net


@contextmanager
def _fake(net: nn.Module) -> Iterator[None]:
    """Make the weights of `net` and all tensors made inside fake; keep the collector of cycles off.

    It would free storage at moments that have nothing to do with the run.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        with FakeTensorMode():
            make_fake(net)
            yield
    finally:
        if was_on:
            gc.enable()


def _give_gradients(weights: list[nn.Parameter]) -> list[torch.Tensor]:
    gradients = [torch.zeros_like(weight) for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    return gradients


def check_fits(config: MemberConfig, setting: Setting) -> None:
    """Raise ConfigError unless the setting's levels and crop fit the member."""
    levels = len(config.network.widths)
    for level in setting.checkpoint_levels:
        if not 0 <= level < levels:
            raise ConfigError(
                f"checkpoint level {level} is not in [0, {levels})",
                "0 is the level of full resolution",
            )
    factor, crop = config.network.factor, setting.crop_px
    if crop and config.network.kind == "base":
        raise ConfigError(f"crop_px {crop}: a base member is trained on whole images")
    if crop % factor or crop > min(config.shape):
        raise ConfigError(
            f"crop_px {crop} is no multiple of {factor} up to {min(config.shape)}, the image's size"
        )
