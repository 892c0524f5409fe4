"""Ray Train: start workers, as many as there are machines for, and again when some are lost."""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from imagen import storage
from runtime import progress, session
from train import rundir
from train.attempts import WorkerFailed
from train.job import Job
from train.logs import LOG
from train.loop import World
from train.machines import STOP, STOPPED, WAITING
from train.validator import Validator
from train.worker import run_rank

RAY = "2.60."
"""Versions of Ray whose insides train/ray_internals.py knows."""
RESIZE_EVERY_S = 30.0
"""How often a run looks for machines to grow onto; each growth restarts all workers."""
TIMEOUT_S = 300
"""How long a collective may take before a peer counts as hung."""
LAST_S = 100.0
"""How long a run that is stopped may take for its last checkpoint: infra's limits are longer."""
TELL_S = 60.0
"""How often a run that waits for machines says so."""


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
    training plans with all CPUs of a node, also those that somebody else uses. What the cluster is
    expected to have counts as there: its machines come when they are asked for.
    """
    there = {**cluster, **session.expected()}
    wants = {"CPU": 1.0 + job.train.loader_workers}
    if there.get("GPU", 0) > 0:
        wants["GPU"] = 1.0
    fence = f"imagen_{job.member}"
    if fence in there:
        wants[fence] = 1.0
    return wants


def room(wants: Mapping[str, float], cluster: Mapping[str, float]) -> int:
    """Return how many workers a cluster has room for, were it idle."""
    return min(int(cluster.get(name, 0) // amount) for name, amount in wants.items())


def fit(job: Job) -> None:
    """Train until the run is done. Raises what made the launch give up."""
    before, failure = -1, None
    with Validator(job):
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
    inside = _internals()
    earlier = job.attempts.reserve(f"train-{trainer.train_run_context.run_id}")
    if inside is not None:
        inside.release(earlier)
    failures: list[Exception] = []

    def call() -> None:
        try:
            trainer.fit()
        except Exception as err:
            failures.append(err)

    thread = threading.Thread(target=call, name="ray-train", daemon=True)  # leaves SIGINT to us
    thread.start()
    waiting = Waiting(job, storage_path)

    def ended() -> bool:
        waiting.tell()
        return not thread.is_alive()

    try:
        progress.follow(
            {job.member: storage.join(job.run_dir, LOG)},
            {job.member: job.train.total},
            ended,
        )
    except KeyboardInterrupt:
        group = os.path.join(storage_path, inside.GROUP) if inside is not None else ""
        if thread.is_alive() and os.path.exists(group):
            _save_last(job, storage_path, thread)
        raise
    else:
        if failures and inside is not None:
            inside.clean(storage_path)
    finally:
        shutil.rmtree(storage_path, ignore_errors=True)
    return failures[0] if failures else None


def _save_last(job: Job, folder: str, call: threading.Thread) -> None:
    """Have the workers save a checkpoint before they go with this process.

    `call` is the call of Ray Train: after its end nobody is left who could save.
    """
    print(f"train {job.member}: saving a checkpoint; Ctrl-C again: without", file=sys.stderr)
    with open(os.path.join(folder, STOP), "w"):
        pass
    deadline, stopped = time.monotonic() + LAST_S, os.path.join(folder, STOPPED)
    while call.is_alive() and not os.path.exists(stopped) and time.monotonic() < deadline:
        call.join(progress.POLL_S)


class Waiting:
    """Tells people what a run waits for: at once, and every `TELL_S`."""

    def __init__(self, job: Job, folder: str) -> None:
        self.start = f"train {job.member}: waiting for {job.train.workers[0]} workers: "
        self.path = os.path.join(folder, WAITING)
        self.said, self.at = "", 0.0

    def tell(self) -> None:
        """Look whether the run waits, and say so when it is time to."""
        text = ""
        if os.path.exists(self.path):
            with open(self.path) as file:
                text = file.read()
        now = time.monotonic()
        if text and (text != self.said or now - self.at > TELL_S):
            print(self.start + text, file=sys.stderr)
            self.said, self.at = text, now


def _internals() -> ModuleType | None:
    """Return what knows the insides of Ray, None when this Ray is another one."""
    if not ray.__version__.startswith(RAY):
        return None
    from train import ray_internals  # fails with another Ray

    return ray_internals


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
    inside = _internals()
    if inside is None:
        print(
            f"train: Ray {ray.__version__} is not {RAY}x: Ray's own elastic training is used, "
            "which loses steps when machines come and minutes when they go",
            file=sys.stderr,
        )
    make = (
        ray.train.torch.TorchTrainer
        if inside is None
        else partial(inside.ElasticTrainer, launch=job.attempts)
    )
    return make(
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
                max_failures=-1,  # `attempts` knows better which failure is one too many
                max_preemption_failures=-1,
            ),
        ),
    )
