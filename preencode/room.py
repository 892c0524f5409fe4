"""How many actors of this stage a Ray cluster has room for."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imagen.errors import ConfigError
from preencode.config import ActorsConfig


def actors(config: ActorsConfig, items: int) -> int:
    """Return how many actors to start for `items` on the cluster that this process is joined to."""
    import ray

    return min(items, config.actors or actors_that_fit(ray.nodes(), config.gpus_per_actor))


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
