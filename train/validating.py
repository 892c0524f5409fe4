"""The validation of one snapshot, from its files to its result: what a task does."""

from dataclasses import dataclass
from typing import Any

import torch

from imagen import snapshot
from imagen.network.unet import UNet, build
from imagen.snapshot import Snapshot
from train import grids, validation
from train.config import TrainConfig, TrainStageConfig
from train.heldout import HeldOut
from train.results import Results

CPU_BATCH = 16
"""Most images of a forward pass on a CPU: more is no faster there."""


@dataclass(frozen=True, slots=True)
class Task:
    """A snapshot to validate."""

    config: TrainStageConfig
    member: str
    results: Results
    name: str

    @property
    def train(self) -> TrainConfig:
        """How the member is trained, and what its snapshots are validated on."""
        return self.config.of(self.member)

    def __call__(self, device: torch.device) -> dict[str, Any] | None:
        """Validate, draw and publish; return the result, None when the snapshot has been deleted.

        Raises ImagenError when the snapshot or the data cannot be read.
        """
        body = self.results.body(self.name)
        try:
            if body is not None:
                losses, png = self._look(body, device)
                self.results.publish(self.name, body, losses, png)
        except Exception:
            if self.results.body(self.name) is not None:
                raise  # else only the newest snapshots are kept, and this one went meanwhile
        return self.results.of_snapshot(self.name)

    def _look(
        self, body: dict[str, Any], device: torch.device
    ) -> tuple[dict[str, Any], bytes | None]:
        """Return what the result says of the losses, and the picture."""
        torch.backends.cuda.matmul.allow_tf32 = False  # float32, as results say
        torch.backends.cudnn.allow_tf32 = False
        train, folder = self.train, self.results.snapshot(self.name)
        loaded = snapshot.load(folder)
        heldout = HeldOut.open(self.config, self.member, max(train.validate, train.grid))
        net = _network(loaded, device)
        losses, png = self._losses(net, loaded, heldout, "ema"), None
        if samples := grids.shown(heldout, train.grid):
            index = list(self.config.members).index(self.member)
            png = grids.grid(net, loaded.config, index, heldout, samples)
        if "raw" in body.get("extras", {}):
            net.load_state_dict(snapshot.load_extra(folder, "raw"))
            losses |= self._losses(net, loaded, heldout, "raw")
        return losses, png

    def _losses(
        self, net: UNet, loaded: Snapshot, heldout: HeldOut, weights: str
    ) -> dict[str, Any]:
        """Return the losses of the weights that `net` holds."""
        train, device = self.train, next(net.parameters()).device
        if not train.validate:
            return {}
        size = train.microbatch if device.type == "cuda" else min(train.microbatch, CPU_BATCH)
        course = validation.Course(
            heldout,
            loaded.config,
            seed=self.config.seed,
            count=min(train.validate, len(heldout.places)),
            crop_px=train.crop_px,
            batch=size,
        )
        found = validation.losses(net, course)
        return {weights: validation.summary(found), "bad": found.bad}


def _network(loaded: Snapshot, device: torch.device) -> UNet:
    net = build(loaded.config.network)
    net.load_state_dict(loaded.state_dict)
    return net.to(device).eval()
