"""Ray Train: start workers, as many as there are machines for, and again when some are lost."""

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from imagen import storage
from runtime import progress
from train import rundir
from train.attempts import WorkerFailed
from train.job import Job
from train.logs import LOG
from train.loop import World
from train.worker import run_rank

MAX_FAILURES = 100
"""Worker failures in one call of Ray Train; after progress, it is called again."""
RESIZE_EVERY_S = 30.0
"""How often a run looks for machines to grow onto; each growth restarts all workers."""
TIMEOUT_S = 300
"""How long a collective may take before a peer counts as hung."""


def train_fn(config: dict[str, Any]) -> None:
    """Run one rank inside a Ray Train worker."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device), "workers have one device each"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(config["cpus"]))
    run_rank(config["job"], World(context.get_world_rank(), context.get_world_size(), device))


def resources(job: Job, cluster: Mapping[str, float]) -> dict[str, float]:
    """Return what one worker takes of a cluster.

    A cluster that serves several members fences each by a resource `imagen_<member>`: elastic
    training plans with all CPUs of a node, also those that somebody else uses.
    """
    wants = {"CPU": 1.0 + job.train.loader_workers}
    if cluster.get("GPU", 0) > 0:
        wants["GPU"] = 1.0
    fence = f"imagen_{job.member}"
    if fence in cluster:
        wants[fence] = 1.0
    return wants


def room(wants: Mapping[str, float], cluster: Mapping[str, float]) -> int:
    """Return how many workers a cluster has room for, were it idle."""
    return min(int(cluster.get(name, 0) // amount) for name, amount in wants.items())


def fit(job: Job) -> None:
    """Train until the run is done. Raises what made the launch give up."""
    before, failure = -1, None
    while rundir.finished(job.run_dir) is None:
        newest = rundir.newest_images(job.run_dir)
        why = job.attempts.given_up()
        if why is not None:
            raise why
        if newest <= before:
            end = f"Ray Train ended at {newest} of {job.train.total} images"
            raise failure or WorkerFailed(end)
        before, failure = newest, _fit_once(job, _plan(job, ray.cluster_resources()))


def _plan(job: Job, cluster: Mapping[str, float]) -> dict[str, float]:
    """Return what one worker takes, and tell people: a cluster may change between two calls."""
    wants = resources(job, cluster)
    fewest, most = job.train.workers
    there, kind = room(wants, cluster), "GPU" if "GPU" in wants else "CPU"
    wait = "waiting for machines: " if there < fewest else ""
    print(
        f"train {job.member} on {kind}s: {wait}{fewest} to {most} workers of {wants} are wanted, "
        f"there is room for {there}",
        file=sys.stderr,
    )
    return wants


def _fit_once(job: Job, wants: dict[str, float]) -> Exception | None:
    """Call Ray Train once and show the progress; return what it raised.

    Why workers failed is in the run directory, in better words.
    """
    storage_path = _ray_folder(job)
    trainer = _trainer(job, wants, storage_path)
    _release(job.attempts.reserve(f"train-{trainer.train_run_context.run_id}"))
    failures: list[Exception] = []

    def call() -> None:
        try:
            trainer.fit()
        except Exception as err:
            failures.append(err)

    thread = threading.Thread(target=call, name="ray-train", daemon=True)  # leaves SIGINT to us
    thread.start()
    try:
        progress.follow(
            {job.member: storage.join(job.run_dir, LOG)},
            {job.member: job.train.total},
            lambda: not thread.is_alive(),
        )
    finally:
        shutil.rmtree(storage_path, ignore_errors=True)
    return failures[0] if failures else None


def _release(reservations: list[str]) -> None:
    """Give back the machines that Ray still keeps for calls of ours that were killed.

    It would do so after 180 seconds by itself. Ray 2.60 has no public way.
    """
    try:
        keeper = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except ValueError:
        return  # a new cluster: nobody keeps anything
    for reservation in reservations:
        ray.get(keeper.cancel_request.remote(reservation))


def _ray_folder(job: Job) -> str:
    """Return an empty local folder for Ray's own state, which is of no use to us."""
    if not storage.is_local(job.run_dir):
        return tempfile.mkdtemp(prefix="imagen-train-")
    folder = storage.join(storage.local(job.run_dir), ".ray")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    os.makedirs(folder, exist_ok=True)  # where a dying worker of it still writes
    return folder


def _trainer(job: Job, wants: dict[str, float], storage_path: str) -> Any:
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths mean the same in every process
    gpu = "GPU" in wants
    return ray.train.torch.TorchTrainer(
        train_fn,
        train_loop_config={"job": job, "cpus": wants["CPU"] - job.train.loader_workers},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=gpu,
            resources_per_worker=wants,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if gpu else "gloo", timeout_s=TIMEOUT_S
        ),
        run_config=ray.train.RunConfig(
            name=job.launch,  # unique: Ray would restore its own state from an earlier name
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_FAILURES, max_preemption_failures=-1
            ),
        ),
    )
