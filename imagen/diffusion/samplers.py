"""Samplers: each one function of (denoise, x, logsnrs), where `denoise(xt, logsnr) -> x0`.

`x`: (b, c, h, w), noised to logsnrs[0]; `logsnrs`: rising floats, one step for each but the last,
-inf first at zero SNR. The last step leads to the clean image, so each returns the last x0.
`noise(i)` is a standard normal like `x`, the i-th draw; `on_step(i)` is called after step i.
Coefficients are float64 on the host.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from imagen.diffusion.config import KNOBS, SamplingConfig
from imagen.diffusion.steps import Level, level, steps
from imagen.errors import ConfigError

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""(xt, logsnr) -> x0."""
Noise = Callable[[int], torch.Tensor]
"""i -> the i-th standard normal draw, like x."""
OnStep = Callable[[int], None]
"""Told the index of each step that is done."""

S_TMIN, S_TMAX, S_NOISE = 0.05, 50.0, 1.003
"""Churn: levels sigma / alpha where it acts, and its noise's deviation (2206.00364, Table 5)."""
HEUN_LEAST = -9.0
"""log-SNR from which `heun` corrects its steps; EDM's largest sigma, 80, is -8.8."""


def ignore(step: int) -> None:
    """Be told of a step and do nothing."""


def _checked(sampler: str, knob: float, noise: Noise | None) -> Noise:
    """Return `noise`. Raises ConfigError for a knob out of range, or for noise due and missing."""
    name, _, most = KNOBS[sampler]
    if not 0 <= knob <= most or math.isinf(knob):
        raise ConfigError(f"{name} {knob} of sampler {sampler} is not in [0, {most:g}]")
    if noise is None and (knob > 0 or sampler == "ddpm"):
        raise ConfigError(
            f"sampler {sampler} with {name} {knob} is stochastic and was given no noise",
            "give noise=, a function from the number of the draw to a standard normal like x",
        )
    return noise if noise is not None else _no_noise


def _no_noise(draw: int) -> torch.Tensor:
    raise AssertionError(f"a deterministic sampler asked for draw {draw}")


def ancestral(
    x: torch.Tensor, x0: torch.Tensor, now: Level, then: Level, gamma: float = 0.0
) -> tuple[torch.Tensor, float]:
    """Return mean and deviation of x at level `then`, given `x` at level `now` and `x0`.

    Salimans & Ho, arXiv:2202.00512, Sec. 2: `gamma` in [0, 1] interpolates the logarithm of the
    variance from its lower to its upper bound.
    """
    fresh = -math.expm1(now.logsnr - then.logsnr)
    keep = (now.alpha / then.alpha) * (then.sigma / now.sigma) ** 2
    mean = keep * x + fresh * then.alpha * x0
    return mean, math.sqrt(fresh) * then.sigma ** (1 - gamma) * now.sigma**gamma


def ddpm(
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    *,
    noise: Noise | None = None,
    gamma: float = 0.0,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 by ancestral sampling (Ho et al., arXiv:2006.11239, Algorithm 2).

    `gamma` in [0, 1] sets the variance of a step, 0 least, as Imagen does (arXiv:2205.11487).
    """
    noise = _checked("ddpm", gamma, noise)
    x0 = x
    for i, now, then, last in steps(logsnrs):
        x0 = denoise(x, now.logsnr)
        x, deviation = ancestral(x, x0, now, then, gamma)
        if not last:
            x = x + deviation * noise(i)
        on_step(i)
    return x0


def ddim(
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 by DDIM (Song et al., arXiv:2010.02502, Eq. 12; `eta` in [0, 1] is Eq. 16's).

    0 is deterministic, 1 is `ddpm` with gamma 0.
    """
    noise = _checked("ddim", eta, noise)
    x0 = x
    for i, now, then, last in steps(logsnrs):
        x0 = denoise(x, now.logsnr)
        eps = (x - now.alpha * x0) / now.sigma
        deviation = eta * then.sigma * math.sqrt(-math.expm1(now.logsnr - then.logsnr))
        x = then.alpha * x0 + math.sqrt(then.sigma**2 - deviation**2) * eps
        if deviation and not last:
            x = x + deviation * noise(i)
        on_step(i)
    return x0


def dpmpp_2m(
    denoise: Denoise, x: torch.Tensor, logsnrs: Sequence[float], *, on_step: OnStep = ignore
) -> torch.Tensor:
    """Return x0 by DPM-Solver++(2M) (Lu et al., arXiv:2211.01095, Algorithm 2).

    The first step and the last, to the clean image, are first order.
    """
    x0 = previous = x
    h_previous = math.inf
    for i, now, then, _ in steps(logsnrs):
        x0 = denoise(x, now.logsnr)
        h = then.logsnr / 2 - now.logsnr / 2
        direction = x0
        if i > 0:
            r = h_previous / h
            direction = x0 + (x0 - previous) / (2 * r)
        x = (then.sigma / now.sigma) * x - then.alpha * math.expm1(-h) * direction
        previous, h_previous = x0, h
        on_step(i)
    return x0


def dpmpp_2m_sde(
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 by SDE-DPM-Solver++(2M) (Lu et al., arXiv:2211.01095, Sec. 5).

    `eta` in [0, 1] is the share of fresh noise: 1 is the paper's, 0 is `dpmpp_2m`.
    """
    noise = _checked("dpmpp_2m_sde", eta, noise)
    x0 = previous = x
    h_previous = math.inf
    for i, now, then, last in steps(logsnrs):
        x0 = denoise(x, now.logsnr)
        h = (then.logsnr - now.logsnr) / 2
        decay = math.exp(-h)  # to a power, so that h = inf and eta = 0 give 1
        direction = x0
        if i > 0:
            direction = x0 + (h / h_previous / 2) * (x0 - previous)
        x = (then.sigma / now.sigma) * decay**eta * x
        x = x + then.alpha * (1 - decay ** (1 + eta)) * direction
        if eta > 0 and not last:
            x = x + then.sigma * math.sqrt(1 - decay ** (2 * eta)) * noise(i)
        previous, h_previous = x0, h
        on_step(i)
    return x0


def _churned(
    x: torch.Tensor, now: Level, rate: float, noise: Noise, i: int
) -> tuple[torch.Tensor, Level]:
    """Return `x` with noise added, and its new level (arXiv:2206.00364, Algorithm 2, lines 4-6)."""
    grow = 1 + min(rate, math.sqrt(2) - 1)
    if grow == 1 or not S_TMIN <= math.exp(-now.logsnr / 2) <= S_TMAX:
        return x, now
    raised = level(now.logsnr - 2 * math.log(grow))
    added = raised.sigma * math.sqrt(1 - grow**-2) * S_NOISE
    return (raised.alpha / now.alpha) * x + added * noise(i), raised


def heun(
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    *,
    noise: Noise | None = None,
    s_churn: float = 0.0,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 by EDM's second-order sampler (Karras et al., arXiv:2206.00364, Algorithm 2).

    Two network calls a step, but one in the last and in steps from beyond EDM's own levels, where
    sigma / alpha may fall a hundredfold at once. `s_churn` >= 0 is noise added and removed again.
    """
    noise = _checked("heun", s_churn, noise)
    x0 = x
    for i, start, then, last in steps(logsnrs):
        x, now = _churned(x, start, s_churn / (len(logsnrs) - 1), noise, i)
        x0 = denoise(x, now.logsnr)
        ratio = then.sigma / now.sigma
        x = ratio * x + (then.alpha - ratio * now.alpha) * x0
        if not last and now.logsnr > HEUN_LEAST:
            # the mean of both slopes eps; of their difference only that of the two x0 is left
            again = denoise(x, then.logsnr)
            x = x + then.alpha * math.expm1((then.logsnr - now.logsnr) / 2) / 2 * (again - x0)
        on_step(i)
    return x0


def euler(
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    *,
    noise: Noise | None = None,
    s_churn: float = 0.0,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 by Euler's method in sigma / alpha; `s_churn` >= 0 as in `heun`.

    Karras et al., arXiv:2206.00364, Algorithm 2 without its correction; deterministic it is `ddim`.
    """
    noise = _checked("euler", s_churn, noise)
    x0 = x
    for i, start, then, _ in steps(logsnrs):
        x, now = _churned(x, start, s_churn / (len(logsnrs) - 1), noise, i)
        x0 = denoise(x, now.logsnr)
        ratio = then.sigma / now.sigma
        x = ratio * x + (then.alpha - ratio * now.alpha) * x0
        on_step(i)
    return x0


class Sampler(NamedTuple):
    """A sampler's function and its one knob: keyword, default and largest value."""

    function: Callable[..., torch.Tensor]
    knob: str | None
    default: float
    most: float


SAMPLERS: dict[str, Sampler] = {
    function.__name__: Sampler(function, *KNOBS[function.__name__])
    for function in (ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, heun, euler)
}
"""Samplers by the name that configs and commands use."""


def run(
    config: SamplingConfig,
    denoise: Denoise,
    x: torch.Tensor,
    logsnrs: Sequence[float],
    noise: Noise | None = None,
    on_step: OnStep = ignore,
) -> torch.Tensor:
    """Return x0 by the sampler and the stochasticity of `config`."""
    function, knob, default, _ = SAMPLERS[config.sampler]
    if knob is None:
        return function(denoise, x, logsnrs, on_step=on_step)
    value = default if config.stochasticity is None else config.stochasticity
    return function(denoise, x, logsnrs, noise=noise, on_step=on_step, **{knob: value})
