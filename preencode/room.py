"""How many actors of this stage a Ray cluster has room for."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from imagen.errors import ConfigError
from preencode.config import ActorsConfig

LOOK_S = 10.0
"""Seconds between two looks at the nodes of a cluster."""


class Room:
    """How many actors there may be on the cluster that this process is joined to.

    As many as the config says, which lets an autoscaler bring their nodes; else as many as fit on
    the nodes of the moment. Raises ConfigError when no node has room for one at the start.
    """

    def __init__(self, config: ActorsConfig) -> None:
        self._config = config
        self._fit, self._at = config.actors or self._look(), time.monotonic()

    def __call__(self) -> int:
        """Return how many actors there may be now."""
        if self._config.actors is None and time.monotonic() - self._at > LOOK_S:
            self._at = time.monotonic()
            with contextlib.suppress(ConfigError):  # all nodes are gone: others may come
                self._fit = self._look()
        return self._fit

    def _look(self) -> int:
        import ray

        return actors_that_fit(ray.nodes(), self._config.gpus_per_actor)


def actors_that_fit(nodes: Sequence[Mapping[str, Any]], gpus: float) -> int:
    """Return how many actors of one core and `gpus` GPUs the nodes of a cluster hold together.

    Raises ConfigError when there is no room for one: Ray would wait for a larger node for ever.
    """
    rooms = (node["Resources"] for node in nodes if node["Alive"])
    fit = sum(int(min(room.get("CPU", 0), _gpu_room(room.get("GPU", 0), gpus))) for room in rooms)
    if not fit:
        raise ConfigError(
            f"no node of the Ray cluster has 1 CPU and {gpus:g} GPUs, which an actor needs",
            "set preencode.gpus_per_actor to what a node has; 0 encodes on cores",
        )
    return fit


def _gpu_room(there: float, gpus: float) -> float:
    if not gpus:
        return math.inf
    return there // gpus if gpus >= 1 else there * int(1 / gpus + 1e-9)  # a share is of one GPU
