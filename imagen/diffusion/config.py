"""What a member's diffusion can be told: how it is trained and how it is sampled."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from imagen.errors import ConfigError

Prediction = Literal["v", "eps", "x0", "edm", "flow"]
Schedule = Literal["cosine", "linear", "edm", "rectified"]
Loss = Literal["l2", "l1", "huber"]
Weighting = Literal["none", "min_snr", "edm", "sigmoid", "v"]
Times = Literal["uniform", "lognormal"]
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "euler"]
Spacing = Literal["time", "logsnr", "karras"]
Guidance = Literal["cfg", "apg"]
Threshold = Literal["dynamic", "static", "none"]

SHIFT_MOST = 10.0
"""Largest |logsnr_shift|: 2 log(64 / size) of sizes from 1 to 9,000 px lies within."""

LOGNORMAL_SCHEDULES = ("edm", "linear")
"""Schedules whose ends EDM's log-normal noise levels reach: at 4.7 and 5.2 deviations."""


class Knob(NamedTuple):
    """What `stochasticity` is to a sampler: its name there (None: nothing), default and maximum."""

    name: str | None
    default: float
    most: float


KNOBS: dict[str, Knob] = {
    "ddpm": Knob("gamma", 0.0, 1.0),
    "ddim": Knob("eta", 0.0, 1.0),
    "dpmpp_2m": Knob(None, 0.0, 0.0),
    "dpmpp_2m_sde": Knob("eta", 1.0, 1.0),
    "heun": Knob("s_churn", 0.0, math.inf),
    "euler": Knob("s_churn", 0.0, math.inf),
}
"""The stochasticity of each sampler."""


def _check_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is none of {', '.join(allowed)}")


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not (least <= value <= most and math.isfinite(value)):
        raise ConfigError(f"{name} {value} is not in [{least:g}, {most:g}]")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Noise levels, what the network predicts, and the loss it is trained with."""

    prediction: Prediction = "v"
    """The network's output: v, eps, x0, edm (Karras et al.'s preconditioning), flow (velocity)."""
    schedule: Schedule = "cosine"
    """Noise levels over time t; edm is Karras et al.'s, rectified a straight line."""
    logsnr_shift: float = 0.0
    """Added to log-SNR: `schedule.resolution_shift(size)` keeps large images as noisy as small."""
    zero_terminal_snr: bool = False
    """Pure noise at t = 1 (Lin et al., arXiv:2305.08891)."""
    loss: Loss = "l2"
    """Error of each element: its square, its absolute value, or Huber's mixture of both."""
    weighting: Weighting = "none"
    """Factor on the l2 loss by noise level; none weighs the network's own output evenly."""
    times: Times = "uniform"
    """How training draws noise levels: t uniform in the schedule, or EDM's log-normal sigma.

    Log-normal draws reach the ends of the schedules edm and linear, and no others.
    """

    def __post_init__(self) -> None:
        _check_choice("prediction", self.prediction, get_args(Prediction))
        _check_choice("schedule", self.schedule, get_args(Schedule))
        _check_choice("loss", self.loss, get_args(Loss))
        _check_choice("weighting", self.weighting, get_args(Weighting))
        _check_choice("times", self.times, get_args(Times))
        _check_range("logsnr_shift", self.logsnr_shift, -SHIFT_MOST, SHIFT_MOST)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse what is no objective, or what training would not prepare sampling for."""
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ConfigError(
                "zero_terminal_snr with prediction 'eps': at t = 1 the noise says nothing of x0",
                "predict v, x0, edm or flow",
            )
        if self.zero_terminal_snr and self.times == "lognormal":
            raise ConfigError(
                "zero_terminal_snr with times 'lognormal': training would never see pure noise",
                "draw times uniformly",
            )
        if self.weighting != "none" and self.loss != "l2":
            raise ConfigError(
                f"weighting {self.weighting!r} with loss {self.loss!r}: the weights are those of "
                "squared errors",
                "take loss l2, or weighting none",
            )
        if self.times == "lognormal" and self.schedule not in LOGNORMAL_SCHEDULES:
            raise ConfigError(
                f"times 'lognormal' with schedule {self.schedule!r}: sampling would start at noise "
                "levels that training never draws, more than 7 standard deviations away",
                "take schedule edm or linear, or draw times uniformly",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Defaults of sampling; each can be set again when sampling."""

    sampler: SamplerName = "dpmpp_2m"
    """Name of the sampler."""
    steps: int = 16
    """Steps; one network evaluation each (with and without text where guided), two with heun."""
    spacing: Spacing = "time"
    """What the steps divide evenly: t, log-SNR, or sigma^(1/7) as Karras et al."""
    stochasticity: float | None = None
    """ddim, dpmpp_2m_sde: eta, ddpm: gamma, all in [0, 1]; heun, euler: S_churn; None = default."""
    guidance_scale: float = 3.0
    """Weight of the text; 1 = no guidance."""
    guidance: Guidance = "cfg"
    """cfg: classifier-free; apg: adaptive projected, which saturates less at high scales."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times t in which text is guided; outside the scale is 1 (Kynkäänniemi et al., 2404.07724)."""
    threshold: Threshold = "dynamic"
    """How x0 is kept in [-1, 1] at each step."""
    threshold_percentile: float = 0.995
    """Dynamic threshold, in (0, 1]."""
    threshold_cap: float | None = None
    """Largest divisor of the dynamic threshold, >= 1; None = no limit."""
    aug_level: float = 0.1
    """Noise level of the low-resolution image, in [0, 1]; without effect in a base member."""

    def __post_init__(self) -> None:
        _check_choice("sampler", self.sampler, get_args(SamplerName))
        _check_choice("spacing", self.spacing, get_args(Spacing))
        _check_choice("guidance", self.guidance, get_args(Guidance))
        _check_choice("threshold", self.threshold, get_args(Threshold))
        if self.steps < 1:
            raise ConfigError(f"steps {self.steps} is less than 1")
        if not math.isfinite(self.guidance_scale):
            raise ConfigError(f"guidance_scale {self.guidance_scale} is not a finite number")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ConfigError(f"guidance_interval [{low}, {high}] is no interval in [0, 1]")
        self._check_threshold()
        self._check_stochasticity()
        _check_range("aug_level", self.aug_level, 0, 1)

    def _check_threshold(self) -> None:
        if not 0 < self.threshold_percentile <= 1:
            raise ConfigError(f"threshold_percentile {self.threshold_percentile} is not in (0, 1]")
        if self.threshold_cap is None:
            return
        if self.threshold != "dynamic":
            raise ConfigError(
                f"threshold_cap {self.threshold_cap} has no effect: threshold is {self.threshold}",
                "leave threshold_cap out, or set threshold: dynamic",
            )
        if not 1 <= self.threshold_cap < math.inf:
            raise ConfigError(f"threshold_cap {self.threshold_cap} is not a finite number >= 1")

    def _check_stochasticity(self) -> None:
        knob = KNOBS[self.sampler]
        if self.stochasticity is None:
            return
        if knob.name is None:
            raise ConfigError(
                f"stochasticity {self.stochasticity} has no effect: {self.sampler} adds no noise",
                "leave it out, or take dpmpp_2m_sde",
            )
        name = f"stochasticity ({knob.name} of {self.sampler})"
        _check_range(name, self.stochasticity, 0, knob.most)
