"""One member of a cascade: a network and a diffusion, for training and for sampling alike.

The only place where `network` and `diffusion` meet. Both paths condition a super-resolution
member with the same function, `condition_lowres`: noise at low resolution, then bilinear
upsampling (Imagen, arXiv:2205.11487, Sec. 2.4 and its
pseudo-code).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from imagen.diffusion.guidance import dynamic_threshold, guide
from imagen.diffusion.prediction import Prediction, diffuse, target, to_x0
from imagen.diffusion.samplers import SAMPLERS
from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr
from imagen.errors import ConfigError
from imagen.network.features import sinusoids
from imagen.network.unet import UNetConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """What the network predicts, and is trained to predict. The schedule is cosine."""

    prediction: Prediction = "v"
    """The network's output: v, eps or x0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Defaults of sampling; each can be set again when sampling."""

    sampler: Literal["ddim", "dpmpp_2m"] = "dpmpp_2m"
    """Name of the sampler."""
    steps: int = 16
    """Network evaluations (each with and without text where guided)."""
    guidance_scale: float = 3.0
    """Weight of the text; 1 = no guidance."""
    threshold_percentile: float = 0.995
    """Dynamic threshold, in (0, 1]."""
    aug_level: float = 0.1
    """Noise level of the low-resolution image, in [0, 1]; without effect in a base member."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler {self.sampler!r} is none of {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ConfigError(f"steps {self.steps} is less than 1")
        if not math.isfinite(self.guidance_scale):
            raise ConfigError(f"guidance_scale {self.guidance_scale} is not a finite number")
        if not 0 < self.threshold_percentile <= 1:
            raise ConfigError(f"threshold_percentile {self.threshold_percentile} is not in (0, 1]")
        if not 0 <= self.aug_level <= 1:
            raise ConfigError(f"aug_level {self.aug_level} is not in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberConfig:
    """One U-Net of a cascade."""

    size: int
    """Height and width of its images in pixels."""
    network: UNetConfig
    """Architecture."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Diffusion."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Defaults of sampling."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % self.network.factor:
            raise ConfigError(
                f"size {self.size} is no multiple of {self.network.factor}, by which a "
                f"{self.network.kind} U-Net of {len(self.network.widths)} levels shrinks it"
            )


@dataclass(frozen=True, slots=True)
class Text:
    """Text of a batch: embeddings (b, l, d) and mask (b, l), True = token."""

    emb: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One microbatch with every random draw made: the loss is a pure function of it."""

    x0: torch.Tensor
    """Clean images (b, c, S, S) in [-1, 1]."""
    eps: torch.Tensor
    """Noise, as `x0`."""
    t: torch.Tensor
    """Times (b,) float64 in (0, 1)."""
    text: Text
    """Text of each image."""
    keep: torch.Tensor
    """(b,) float: 1 = the text is seen, 0 = dropped."""
    lowres: torch.Tensor | None = None
    """Low-resolution images (b, c, s, s) in [-1, 1], at the size of the member before."""
    aug_level: torch.Tensor | None = None
    """Augmentation level (b,) float64 in [0, 1]."""
    aug_eps: torch.Tensor | None = None
    """Augmentation noise (b, c, s, s), as `lowres`."""


def _broadcast(value: torch.Tensor) -> torch.Tensor:
    return value.float()[:, None, None, None]


def condition_lowres(
    lowres: torch.Tensor, aug_level: torch.Tensor, aug_eps: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what an SR network sees: the noised, upsampled image (b, c, S, S) and features (b, f).

    `lowres`, `aug_eps`: (b, c, s, s); `aug_level`: (b,) in [0, 1], a time of the schedule.
    """
    logsnr = cosine_logsnr(aug_level)
    alpha, sigma = (_broadcast(z) for z in alpha_sigma(logsnr))
    noised = diffuse(lowres, aug_eps, alpha, sigma)
    up = functional.interpolate(noised, (size, size), mode="bilinear", align_corners=False)
    return up, sinusoids(logsnr)


def loss(net: nn.Module, config: MemberConfig, batch: TrainBatch) -> torch.Tensor:
    """Return the loss (b,) of each sample: mean squared error of what the network predicts."""
    logsnr = cosine_logsnr(batch.t)
    alpha, sigma = (_broadcast(z) for z in alpha_sigma(logsnr))
    xt = diffuse(batch.x0, batch.eps, alpha, sigma)
    lowres = aug = None
    if batch.lowres is not None:
        assert batch.aug_level is not None, "SR batches have an augmentation level"
        assert batch.aug_eps is not None, "SR batches have augmentation noise"
        lowres, aug = condition_lowres(batch.lowres, batch.aug_level, batch.aug_eps, config.size)
    out = net(xt, sinusoids(logsnr), batch.text.emb, batch.text.mask, batch.keep, lowres, aug)
    error = out.float() - target(config.diffusion.prediction, batch.x0, batch.eps, alpha, sigma)
    return error.square().flatten(1).mean(dim=1)


def denoiser(
    net: nn.Module,
    config: MemberConfig,
    text: Text,
    guidance_scale: float,
    lowres: torch.Tensor | None = None,
    aug: torch.Tensor | None = None,
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """Return `denoise(xt, t) -> x0`, guided and thresholded.

    With and without text are two halves of one batch; scale 1 runs only the first half, scale 0
    only the second. `lowres`, `aug`: from `condition_lowres`, for SR members.
    """
    halves = {1.0: (1.0,), 0.0: (0.0,)}.get(float(guidance_scale), (1.0, 0.0))
    n = len(halves)

    def rows(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.repeat(n, *[1] * (value.ndim - 1))

    emb, mask, lowres_rows, aug_rows = rows(text.emb), rows(text.mask), rows(lowres), rows(aug)
    keep = torch.tensor(halves, device=text.emb.device).repeat_interleave(text.emb.shape[0])

    def denoise(xt: torch.Tensor, t: float) -> torch.Tensor:
        logsnr = cosine_logsnr(torch.full((xt.shape[0],), t, dtype=torch.float64, device=xt.device))
        alpha, sigma = (_broadcast(z) for z in alpha_sigma(logsnr))
        time = rows(sinusoids(logsnr))
        out = net(rows(xt), time, emb, mask, keep, lowres_rows, aug_rows).float()
        if n == 2:
            cond, uncond = out.chunk(2)
            out = guide(cond, uncond, guidance_scale)
        x0 = to_x0(config.diffusion.prediction, out, xt, alpha, sigma)
        return dynamic_threshold(x0, config.sampling.threshold_percentile)

    return denoise
