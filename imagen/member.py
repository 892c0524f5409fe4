"""One member of a cascade: a network and a diffusion, for training and for sampling alike.

The only place where `network` and `diffusion` meet. What the network receives is made by the same
functions on both paths (`imagen.inputs`).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from imagen import checks
from imagen.batch import Given, Text, TrainBatch, present
from imagen.diffusion.config import DiffusionConfig, SamplingConfig
from imagen.diffusion.guidance import ProjectedGuidance, guide, scale_at, threshold
from imagen.diffusion.losses import elementwise, weight
from imagen.diffusion.prediction import diffuse, input_scale, target, to_x0
from imagen.diffusion.samplers import Denoise
from imagen.diffusion.schedule import alpha_sigma, schedule, train_logsnr
from imagen.errors import ConfigError
from imagen.inputs import condition_lowres, features, per_image, text_inputs
from imagen.network.conditions import Conditions
from imagen.network.config import UNetConfig

__all__ = [
    "DiffusionConfig", "Given", "MemberConfig", "SamplingConfig", "Text", "TrainBatch",
    "check_batch", "condition_lowres", "denoiser", "loss", "present",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberConfig:
    """One U-Net of a cascade."""

    size: int | tuple[int, int]
    """Height and width of its images in pixels: one number for squares, or (height, width)."""
    network: UNetConfig
    """Architecture."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Diffusion."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Defaults of sampling."""

    def __post_init__(self) -> None:
        for pixels in self.shape:
            if pixels < 1 or pixels % self.network.factor:
                raise ConfigError(
                    f"size {pixels} is no multiple of {self.network.factor}, by which a "
                    f"{self.network.kind} U-Net of {len(self.network.widths)} levels shrinks it"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def check_batch(config: MemberConfig, batch: TrainBatch) -> None:
    """Raise ConfigError unless a training batch fits its member: fields, shapes, types, ranges.

    Reads values, so a GPU is waited for: call it for a run's first batch, not for each.
    """
    checks.check(config.network, config.shape, batch)


def loss(net: nn.Module, config: MemberConfig, batch: TrainBatch) -> torch.Tensor:
    """Return the loss (b,) of each sample: the mean error of what the network predicts, weighted.

    The size of `batch.x0` decides the size that is trained on, so crops need no other config.
    """
    diffusion = config.diffusion
    logsnr = train_logsnr(diffusion, batch.t)
    alpha, sigma = (per_image(z) for z in alpha_sigma(logsnr))
    xt = diffuse(batch.x0, batch.eps, alpha, sigma)
    x = xt * input_scale(diffusion.prediction, alpha, sigma)
    seen = _conditions(batch, logsnr)
    if batch.self_cond is not None:
        first = _first_estimate(net, config, (x, xt), seen, (alpha, sigma))
        seen = replace(seen, x0_previous=first * per_image(batch.self_cond))
    out = net(x, seen).float()
    error = out - target(diffusion.prediction, batch.x0, batch.eps, alpha, sigma)
    losses = elementwise(diffusion.loss, error).flatten(1).mean(dim=1)
    return losses * weight(diffusion, logsnr).float()


def _conditions(batch: TrainBatch, logsnr: torch.Tensor) -> Conditions:
    lowres = aug = None
    if batch.lowres is not None:
        assert batch.aug_level is not None, "SR batches have an augmentation level"
        assert batch.aug_eps is not None, "SR batches have augmentation noise"
        height, width = batch.x0.shape[2:]
        lowres, aug = condition_lowres(
            batch.lowres, batch.aug_level, batch.aug_eps, (height, width)
        )
    return Conditions(
        time=features(logsnr),
        lowres=lowres,
        aug=aug,
        image=batch.image,
        **text_inputs(batch.text, batch.keep, batch.label),
    )


@torch.no_grad()
def _first_estimate(
    net: nn.Module,
    config: MemberConfig,
    inputs: tuple[torch.Tensor, torch.Tensor],
    seen: Conditions,
    scales: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the network's own estimate of x0 in [-1, 1], made without an estimate to see.

    Self-conditioning (Chen et al., arXiv:2208.04202): no gradient passes through it, and
    it is an input only, whatever the network predicts.
    """
    x, xt = inputs
    x0 = to_x0(config.diffusion.prediction, net(x, seen).float(), xt, *scales).clamp(-1, 1)
    # autocast has kept copies of the weights without gradient, which the pass to come would use
    torch.clear_autocast_cache()
    return x0


def denoiser(net: nn.Module, config: MemberConfig, given: Given) -> Denoise:
    """Return `denoise(xt, logsnr) -> x0` of one trajectory, guided and thresholded.

    `xt`: (b, c, h, w) at log-SNR `logsnr`, -inf at zero SNR. `config.sampling` says how. With and
    without text are two halves of one batch; scale 1 runs only the first, scale 0 only the second.
    Make a new one for each trajectory: self-conditioning and projected guidance remember the call
    before.
    """
    return _Denoiser(net, config, given)


class _Denoiser:
    def __init__(self, net: nn.Module, config: MemberConfig, given: Given) -> None:
        self.net, self.config, self.given = net, config, given
        self.schedule = schedule(config.diffusion)
        self.project = ProjectedGuidance()
        self.previous: torch.Tensor | None = None
        self.fixed: dict[tuple[bool, ...], dict[str, torch.Tensor | None]] = {}

    def __call__(self, xt: torch.Tensor, logsnr: float) -> torch.Tensor:
        sampling = self.config.sampling
        scale = scale_at(sampling, self.schedule, logsnr) if self._droppable else 1.0
        if scale in (0.0, 1.0):
            x0 = self._estimate(xt, logsnr, (scale == 1.0,))
        else:
            cond, uncond = self._estimate(xt, logsnr, (True, False)).chunk(2)
            combine = self.project if sampling.guidance == "apg" else guide
            x0 = combine(cond, uncond, scale)
        x0 = threshold(sampling, x0)
        if self.config.network.self_conditioning:
            self.previous = x0.clamp(-1, 1)  # as in training, whatever the threshold
        return x0

    @property
    def _droppable(self) -> bool:
        """Whether there is something that guidance can leave out."""
        return self.given.text is not None or self.given.label is not None

    def _estimate(self, xt: torch.Tensor, logsnr: float, halves: tuple[bool, ...]) -> torch.Tensor:
        """Return x0 (len(halves) b, c, h, w); of each half: True = conditional."""
        kind, exact = self.config.diffusion.prediction, torch.tensor([logsnr], dtype=torch.float64)
        alpha, sigma = (z[0].float() for z in alpha_sigma(exact))
        rows = xt.repeat(len(halves), 1, 1, 1)
        time = features(exact).to(xt.device).expand(len(rows), -1)
        previous = _repeated(self.previous, len(halves))
        fixed = self._conditions(halves, len(xt))
        seen = Conditions(time=time, x0_previous=previous, **fixed)
        out = self.net(rows * input_scale(kind, alpha, sigma), seen).float()
        return to_x0(kind, out, rows, alpha, sigma)

    def _conditions(self, halves: tuple[bool, ...], b: int) -> dict[str, torch.Tensor | None]:
        """Return the fields of `Conditions` that stay the same from call to call."""
        if halves not in self.fixed:
            given, n = self.given, len(halves)
            texts = _joined([self._text_half(conditional, b) for conditional in halves])
            rest = {"lowres": given.lowres, "aug": given.aug, "image": given.image}
            self.fixed[halves] = texts | {key: _repeated(z, n) for key, z in rest.items()}
        return self.fixed[halves]

    def _text_half(self, conditional: bool, b: int) -> dict[str, torch.Tensor | None]:
        given = self.given
        ones = torch.ones(b, device=next(self.net.parameters()).device)
        if conditional:
            return text_inputs(given.text, ones, given.label)
        if given.negative is not None:
            return text_inputs(given.negative, ones, given.label)
        return text_inputs(given.text, torch.zeros_like(ones), given.label)


def _repeated(value: torch.Tensor | None, times: int) -> torch.Tensor | None:
    return None if value is None else value.repeat(times, *[1] * (value.ndim - 1))


def _joined(halves: list[dict[str, torch.Tensor | None]]) -> dict[str, torch.Tensor | None]:
    """Return the rows of all halves one after another, texts padded to the longest."""
    joined: dict[str, torch.Tensor | None] = {}
    for key in halves[0]:
        parts = [half[key] for half in halves]
        there = [part for part in parts if part is not None]
        if key in ("text_emb", "text_mask"):
            longest = max(part.shape[1] for part in there)
            there = [_padded(part, longest) for part in there]
        joined[key] = torch.cat(there) if there else None
    return joined


def _padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Return (b, l, …) with zeros or False up to `length` tokens."""
    more = tokens.new_zeros(len(tokens), length - tokens.shape[1], *tokens.shape[2:])
    return torch.cat([tokens, more], dim=1)
