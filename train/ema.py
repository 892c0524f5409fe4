"""Averages of the weights over a run, by images seen: power functions, or an exponential.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
arXiv:2312.02696, section 3.1: an average whose width is a fixed share of the run so far, so that
the random initial weights are soon forgotten and no start-up correction is needed.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from train.config import TrainConfig

MAIN = "ema"
"""Of the average that is sampled from; profiles are called `ema@0.05`, after their width."""
RAMP = 0.05
"""Longest half-life of the exponential average as a share of the images so far: as EDM's."""
_FORGOTTEN = 1e-3
"""Share of a profile that may be of before its start, for it to be called by its width."""


def gamma(sigma_rel: float) -> float:
    """Return the exponent whose profile has relative width `sigma_rel` (inverse of Eq. 123)."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def sigma_rel(exponent: float) -> float:
    """Return sqrt(exponent + 1) / ((exponent + 2) sqrt(exponent + 3)) (Eq. 123)."""
    return float((exponent + 1) ** 0.5 / ((exponent + 2) * (exponent + 3) ** 0.5))


def beta(exponent: float, images_seen: int, global_batch: int) -> float:
    """Return the weight of the old average at the step that ends at `images_seen` (Eq. 127)."""
    return (1 - global_batch / images_seen) ** (exponent + 1)


def halflife_beta(halflife: int, images_seen: int, global_batch: int) -> float:
    """Return the weight of the old average at the step that ends at `images_seen`.

    0.5^(batch / half-life), the half-life at most `RAMP` of the images before the step: the
    initial weights are forgotten at the first one (Karras et al., arXiv:2206.00364, App. F.2, and
    their code).
    """
    ramped = min(float(halflife), RAMP * (images_seen - global_batch))
    return 0.5 ** (global_batch / ramped) if ramped > 0 else 0.0


def profile_name(width: float) -> str:
    """Return what the profile of a width is called in checkpoints and snapshots."""
    return f"{MAIN}@{width:g}"


@torch.no_grad()
def update(
    averages: Iterable[torch.Tensor], weights: Iterable[torch.Tensor], old_share: float
) -> None:
    """Move each average towards its weight, in place: old_share a + (1 - old_share) w."""
    get_ema_multi_avg_fn(old_share)(list(averages), [_mine(w) for w in weights], 0)


def _mine(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: all of it, or its shard."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Averages:
    """The main average of a run and its profiles; each starts as a copy of the weights.

    Of weights that are cut among processes (DTensor), each process averages its own shards.
    """

    def __init__(
        self, named_weights: Sequence[tuple[str, torch.Tensor]], config: TrainConfig
    ) -> None:
        self.config, self.weights = config, dict(named_weights)
        widths = {profile_name(width): width for width in config.ema_profiles}
        self.gammas = {kind: gamma(width) for kind, width in widths.items()}
        self.since = {kind: torch.zeros((), dtype=torch.int64) for kind in widths}
        """Images seen when each profile began: one may be added to a run that is under way."""
        self.images_seen = 0
        self.averages = {
            kind: {name: weight.detach().clone() for name, weight in named_weights}
            for kind in (MAIN, *widths)
        }
        self.gammas[MAIN] = gamma(config.ema_sigma_rel)

    def update(self, images_seen: int) -> None:
        """Take in the weights after the step that ended at `images_seen`."""
        self.images_seen = images_seen
        for kind, averages in self.averages.items():
            mine = [_mine(average) for average in averages.values()]
            update(mine, self.weights.values(), self._beta(kind, images_seen))

    def _beta(self, kind: str, images_seen: int) -> float:
        batch, halflife = self.config.global_batch, self.config.ema_halflife_images
        if kind == MAIN and halflife:
            return halflife_beta(halflife, images_seen, batch)
        return beta(self.gammas[kind], images_seen, batch)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all state, live, for checkpoints.

        Averages as `ema/<weight>` and `ema@0.05/<weight>`; `since/ema@0.05`, a number, for each
        profile: the images at its start.
        """
        tensors = {
            f"{kind}/{name}": average
            for kind, averages in self.averages.items()
            for name, average in averages.items()
        }
        return tensors | {f"since/{kind}": start for kind, start in self.since.items()}

    @torch.no_grad()
    def restored(self, images_seen: int, found: Collection[str]) -> None:
        """Go on from values that were copied into `tensors`; `found`: names that had one.

        A profile that the checkpoint does not have begins here, with the weights of now.
        """
        self.images_seen = images_seen
        for kind, averages in self.averages.items():
            if any(f"{kind}/{name}" not in found for name in averages):
                assert kind != MAIN, "every checkpoint has the main average"
                self.since[kind].fill_(images_seen)
                for name, average in averages.items():
                    average.copy_(self.weights[name])

    def main(self) -> dict[str, torch.Tensor]:
        """Return the main average by weight."""
        return self.averages[MAIN]

    def profiles(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the profiles by name and weight: those whose start has no part in them any more.

        One that was added to a run under way holds (start / now)^(gamma + 1) of the weights of its
        start. While that is much, it is not what its name says, and is left out.
        """
        return {kind: self.averages[kind] for kind in self.since if self._is_profile(kind)}

    def _is_profile(self, kind: str) -> bool:
        start = int(self.since[kind]) / max(self.images_seen, 1)
        return start ** (self.gammas[kind] + 1) <= _FORGOTTEN
