"""What a caller may ask of sampling, and how one member draws: counter-based noise, then a sampler.

Each image has its own seed, and each of its draws is a pure function of seed, member and number of
the draw; so a picture does not depend on what else is in the batch.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from imagen.checks import check_type
from imagen.config import build as build_config
from imagen.config import to_tree
from imagen.data.randomness import Purpose, normals
from imagen.diffusion.config import KNOBS, SamplingConfig
from imagen.diffusion.editing import noised, repaint
from imagen.diffusion.samplers import run
from imagen.diffusion.schedule import schedule
from imagen.diffusion.spacing import path
from imagen.editing import Canvas
from imagen.errors import ConfigError
from imagen.inputs import condition_lowres
from imagen.member import Given, MemberConfig, denoiser

_FOR_ALL = ("guidance_scale", "steps", "sampler", "aug_level")
_KEYS = tuple(f.name for f in dataclasses.fields(SamplingConfig))
_TYPES: dict[str, tuple[type, str]] = {
    "guidance_scale": (Real, "a number"),
    "steps": (Integral, "a whole number"),
    "sampler": (str, "the name of a sampler"),
    "aug_level": (Real, "a number"),
    "negative": (str, "one text for all images"),
    "last": (str, "a member's name"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What a caller may set when sampling; None keeps each member's own default."""

    guidance_scale: float | None = None
    """Weight of the text in every member that has text; 1 = no guidance."""
    steps: int | None = None
    """Steps of every member."""
    sampler: str | None = None
    """Sampler of every member."""
    aug_level: float | None = None
    """Noise level of the low-resolution image in every SR member, in [0, 1]."""
    negative: str | None = None
    """What guidance leads away from, in place of no text; needs guidance_scale other than 1.

    "" is no text, as None. Members with classes take none: both halves would see the label.
    """
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Any keys of the `sampling` section, for every member: spacing, threshold, guidance …"""
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Member -> any keys of its `sampling` section; they win over the options for all members."""
    last: str | None = None
    """Stop after this member; None: the last one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What networks compute in: bf16 is autocast, faster on GPUs; samplers stay float32."""

    def __post_init__(self) -> None:
        for name, (kind, what) in _TYPES.items():
            if getattr(self, name) is not None:
                check_type(f"options.{name}", getattr(self, name), kind, what)
        if self.negative is not None and not self.negative.strip():
            object.__setattr__(self, "negative", None)
        self._check_values()
        _check_keys("options.sampling", self.sampling)
        check_type("options.members", self.members, Mapping, "a mapping of members")
        for name, keys in self.members.items():
            _check_keys(f"options.members.{name}", keys)
        for key in _FOR_ALL:
            if key in self.sampling and getattr(self, key) is not None:
                raise ConfigError(
                    f"`{key}` is set twice for all members: {key} {getattr(self, key)!r} and "
                    f"sampling {key} {self.sampling[key]!r}",
                    "leave one of them out",
                )

    def _check_values(self) -> None:
        if self.sampler is not None and self.sampler not in KNOBS:
            raise ConfigError(
                f"sampler {self.sampler!r} is unknown", f"samplers: {', '.join(KNOBS)}"
            )
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ConfigError(f"guidance_scale {self.guidance_scale} is not a finite number")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps {self.steps} is less than 1")
        if self.aug_level is not None and not 0 <= self.aug_level <= 1:
            raise ConfigError(f"aug_level {self.aug_level} is not in [0, 1]")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision {self.precision!r} is none of fp32, bf16")

    def asked(self, name: str) -> dict[str, Any]:
        """Return the keys of `sampling` that are set for member `name`: its own, then all's."""
        named = {key: getattr(self, key) for key in _FOR_ALL if getattr(self, key) is not None}
        return named | dict(self.sampling) | dict(self.members.get(name, {}))

    def resolve(self, name: str, defaults: SamplingConfig) -> SamplingConfig:
        """Return how member `name` is sampled. Raises ConfigError for values that do not fit."""
        chosen = self.asked(name)
        if chosen.get("sampler", defaults.sampler) != defaults.sampler:
            chosen.setdefault("stochasticity", None)  # the default was meant for another sampler
        tree = to_tree(defaults) | to_tree(chosen)
        return build_config(SamplingConfig, tree, where=f"sampling of {name}")


def _check_keys(where: str, keys: Mapping[str, Any]) -> None:
    check_type(where, keys, Mapping, "a mapping of keys of `sampling`")
    for key in keys:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"keys: {', '.join(_KEYS)}"
            raise ConfigError(f"{where} has an unknown key `{key}`", hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What members may be conditioned on beside text, one row an image."""

    labels: torch.Tensor | None = None
    """Class of each image (b,) int64, for members with classes."""
    images: torch.Tensor | None = None
    """Conditioning images (b, c, h, w) in [-1, 1], for members that take them."""


def noise(seeds: Sequence[int], purpose: int, shape: Sequence[int], draw: int = 0) -> torch.Tensor:
    """Return standard normal noise (b, *shape), each row a function of its own seed and `draw`."""
    position, count = np.array([draw], dtype=np.int64), math.prod(shape)
    rows = [normals(seed, purpose, position, count)[0] for seed in seeds]
    return torch.from_numpy(np.stack(rows)).reshape(len(seeds), *shape)


def noised_lowres(
    config: MemberConfig, index: int, lowres: torch.Tensor, seeds: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what member number `index` sees of `lowres` (b, c, s, s): image and features."""
    level = torch.full((len(seeds),), config.sampling.aug_level, dtype=torch.float64)
    eps = noise(seeds, Purpose.SAMPLE_AUG + index, lowres.shape[1:])
    device = lowres.device
    return condition_lowres(lowres, level.to(device), eps.to(device), config.shape)


def draw(
    net: nn.Module,
    config: MemberConfig,
    index: int,
    given: Given,
    seeds: Sequence[int],
    on_step: Callable[[int], None],
    canvas: Canvas | None = None,
    on_denoised: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Return the images (b, c, h, w) in [-1, 1] that member number `index` draws.

    `config.sampling` decides how; `canvas`: the picture it starts from, None for noise alone.
    `on_denoised` is given each clean image that the network predicts on the way.
    """
    device = next(net.parameters()).device
    shape = (config.network.channels, *config.shape)
    x = noise(seeds, Purpose.SAMPLE + index, shape).to(device)

    def step_noise(number: int) -> torch.Tensor:
        return noise(seeds, Purpose.SAMPLE_STEP + index, shape, number).to(device)

    sampling = config.sampling
    start = 1.0 if canvas is None else canvas.start
    logsnrs = path(schedule(config.diffusion), sampling.steps, sampling.spacing, start)
    if canvas is not None and start < 1:
        x = noised(canvas.image, logsnrs[0], x)
    denoise = _shown(denoiser(net, config, given), on_denoised)
    if canvas is None or canvas.mask is None:
        return run(sampling, denoise, x, logsnrs, step_noise, on_step).clamp(-1, 1)
    x0 = repaint(
        denoise, x, logsnrs, canvas.image, canvas.mask.float(),
        noise=step_noise, resample=canvas.resample, on_step=on_step,
    )  # fmt: skip
    return torch.where(canvas.mask, x0.clamp(-1, 1), canvas.image)


def _shown(
    denoise: Callable[[torch.Tensor, float], torch.Tensor],
    show: Callable[[torch.Tensor], None] | None,
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """Return `denoise`, which shows what it predicts."""
    if show is None:
        return denoise

    def shown(xt: torch.Tensor, logsnr: float) -> torch.Tensor:
        x0 = denoise(xt, logsnr)
        show(x0)
        return x0

    return shown
