"""Validation as Ray tasks: what one takes of a cluster, and what became of it.

A task takes no CPU of the cluster (elastic training plans with all of them) and steps back behind
others on its machine; or a GPU of its own, on nodes that have the resource `imagen_validation`;
or, after the training, one of the GPUs that it had.
"""

import os
import threading
import time
from typing import Any

import torch

from imagen.errors import StorageError
from runtime import session
from train.validating import Task

FENCE = "imagen_validation"
"""Resource of nodes that are kept for validation."""
LOOK_S = 0.5
GPU_WAIT_S = 30.0
"""How long a GPU is waited for after the end of the training, before it is done on a CPU."""
NICENESS = 10


def is_own(err: Exception) -> bool:
    """Tell whether a task failed by itself, not for a machine or a store that was lost."""
    import ray.exceptions

    own = isinstance(err, ray.exceptions.RayTaskError)
    return own and not isinstance(getattr(err, "cause", None), OSError | StorageError)


def run(task: Task, stop: threading.Event, last: bool) -> dict[str, Any] | None:
    """Run a task on the cluster; return its result, or None when `stop` was set meanwhile.

    `last`: the training has ended, and its GPUs are free.
    """
    import ray

    wants = takes(ray.nodes())
    if last and "resources" not in wants and _is_a_gpu_free(stop):
        wants["num_gpus"] = 1
    options = {**wants, "max_retries": 1, "max_calls": 1}
    ref = ray.remote(**options)(_validate).remote(task)
    while not ray.wait([ref], timeout=LOOK_S)[0]:
        if stop.is_set():
            ray.cancel(ref, force=True)
            return None
    return ray.get(ref)


def _is_a_gpu_free(stop: threading.Event) -> bool:
    """Tell whether the cluster has a GPU to spare; those of a training are not free at once."""
    import ray

    if ray.cluster_resources().get("GPU", 0) < 1:
        return False
    deadline = time.monotonic() + GPU_WAIT_S
    while ray.available_resources().get("GPU", 0) < 1:
        if stop.wait(LOOK_S) or time.monotonic() > deadline:
            return False  # another member trains on them
    return True


def takes(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a task takes of a cluster with these nodes."""
    fenced = [n["Resources"] for n in nodes if n["Alive"] and n["Resources"].get(FENCE, 0) >= 1]
    awaited = session.expected()
    if not fenced and FENCE in awaited:
        fenced = [awaited]  # an autoscaler brings it when it is asked for
    if not fenced:
        return {"num_cpus": 0}
    gpus = int(any(resources.get("GPU", 0) >= 1 for resources in fenced))
    return {"num_cpus": 0, "num_gpus": gpus, "resources": {FENCE: 1}}


def _validate(task: Task) -> dict[str, Any] | None:
    """Run in a process of its own, which ends with it: it is niced, and may hold a GPU's memory."""
    import ray

    torch.set_num_threads(1)
    if ray.get_gpu_ids():
        return task(torch.device("cuda"))
    os.nice(NICENESS)
    return task(torch.device("cpu"))
