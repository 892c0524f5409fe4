"""Stages as Ray jobs: what a job is given, checked before anything is submitted, and once."""

import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from imagen import __version__, manifest, storage
from imagen import config as configs
from imagen.errors import ConfigError
from pipeline import jobs, stages
from pipeline.config import PipelineConfig, load
from pipeline.jobs import Cluster, JobInfo
from pipeline.stages import Stage
from runtime import session, wandb_run
from train import initial
from train import stage as train_stage

Code = Literal["checkout", "image"]
CODES: tuple[Code, ...] = ("checkout", "image")
"""Where the code of a job comes from: shipped with it from this checkout, or in the image."""
SUBMITTED = "submitted"
"""Folder below `out` with the configs that jobs were given, each named by its digest."""
STOP_WAIT_S = 120
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
"""A stage ends in order on SIGINT, a training with a checkpoint; Ray's own: SIGTERM, then 3 s."""
PATHS = ("out", "data.tars", "source.path", "publish.to", "init_from")
"""Ends of keys that are paths, if they have a value."""
NAMES = ("text.encoder", "eval.prompts", "eval.clip", "weights", "reference")
"""Ends of keys that are paths or names of something."""


class NotNow(ConfigError):
    """A stage cannot be submitted now, but later it may."""


class RunsOtherwise(NotNow):
    """A stage is being run by a job with other settings, or by another command."""

    def __init__(self, message: str, hint: str, job: JobInfo) -> None:
        super().__init__(message, hint)
        self.job = job

    def __reduce__(self) -> tuple:
        return type(self), (self.message, self.hint, self.job)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipment:
    """What all jobs of one run are given."""

    config: PipelineConfig
    """As jobs read it: from `path`, without overrides."""
    tree: Mapping[str, Any]
    """The config with every default in it."""
    code: Code = "checkout"

    @property
    def out(self) -> str:
        """Folder or URL of the run."""
        return self.config.out

    @property
    def digest(self) -> str:
        """Hex digits that stand for the settings."""
        return manifest.fingerprint(self.tree)

    def stages(self) -> list[Stage]:
        """Return the stages as jobs run them."""
        return stages.line(self.config)

    def runtime_env(self) -> dict[str, Any]:
        """Return what Ray prepares for a job: the code, and the settings of its environment."""
        env: dict[str, Any] = {"env_vars": {**session.SETTINGS, **STOPPING}}
        if self.code == "checkout":
            env["working_dir"] = str(Path(__file__).parents[1])  # by content: sent once
        return env


def ship(config: PipelineConfig, code: Code = "checkout") -> Shipment:
    """Return what the jobs of a config are given; nothing is written yet. Raises ConfigError."""
    if (place := jobs.place(config.out)) != config.out:
        config = load(config.path, (*config.overrides, f"out={json.dumps(place)}"))
    tree: dict[str, Any] = configs.read_tree(config.path, config.overrides)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tree |= configs.to_tree(value)
    _check_paths(tree)
    path = storage.join(config.out, SUBMITTED, f"{manifest.fingerprint(tree)}.yaml")
    return Shipment(config=replace(config, path=path, overrides=()), tree=tree, code=code)


def _check_paths(tree: Mapping[str, Any]) -> None:
    """Raise ConfigError for local paths that mean something else in the folder of a job."""
    hub = tree.get("source") and tree["source"]["name"] == "hub"
    for key, value in _texts(tree):
        if not value or not storage.is_local(value) or os.path.isabs(storage.local(value)):
            continue
        named = _is(key, NAMES) or bool(hub and key == "source.path")
        here = os.path.exists(value) and ("/" in value or os.path.isfile(value))
        if (named and here) or (_is(key, PATHS) and not named):
            raise ConfigError(
                f"`{key}` is `{value}`, which on a cluster lies in a job's own folder, that ends "
                "with the job",
                f"give a bucket (gs://…) or a path of a disk that this machine and all nodes "
                f"have: {key}={os.path.abspath(value)}",
            )


def _is(key: str, ends: Sequence[str]) -> bool:
    return any(key == end or key.endswith(f".{end}") for end in ends)


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys and the values of all texts."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}" if key else name)
    elif isinstance(tree, str):
        yield key, tree


def check(
    stage: Stage, line: Sequence[Stage], config: PipelineConfig, extra: Sequence[str] = ()
) -> None:
    """Raise what a training would fail of on the cluster, when its GPUs are there already."""
    if stage.training is None:
        return
    for other in line:
        if other.name in stage.after and (state := other.state()).status != "done":
            raise NotNow(
                f"{stage.name} needs {other.name}, which is {state.status}: {state.detail}",
                f"run it first: python -m pipeline submit {other.slug} CONFIG, or all in order: "
                "python -m pipeline submit line CONFIG",
            )
    member = stage.training.member
    accept = [value for option, value in pairwise(extra) if option == "--accept"]
    settled = initial.settled(train_stage.absolute(config.train), member)
    train_stage.check(settled, member, accept)


def check_line(cluster: Cluster, shipment: Shipment, line: Sequence[Stage]) -> None:
    """Raise what a training of a line would fail of, as far as that is known before it starts.

    Its data and embeddings are looked at when they are there, else when they are: see `check`.
    """
    known = cluster.of(shipment.out)
    for stage in line:
        if stage.training is None or running(known, shipment, stage.name, stage.arguments):
            continue
        if stage.state().status in ("done", "running"):
            continue
        if all(other.state().status == "done" for other in line if other.name in stage.after):
            check(stage, line, shipment.config)
            continue
        config, member = train_stage.absolute(shipment.config.train), stage.training.member
        wandb_run.check(config.of(member).wandb)
        initial.check(initial.settled(config, member), member)


def submit(
    cluster: Cluster, shipment: Shipment, name: str, words: Sequence[str]
) -> tuple[JobInfo, bool]:
    """Return the job of a stage and whether it is a new one: what runs already is not run twice.

    `words`: its command line, after the Python interpreter. Raises RunsOtherwise when it runs
    with other settings or by another command.
    """
    while True:
        known = cluster.of(shipment.out)
        if job := running(known, shipment, name, words):
            return job, False
        if (before := known.get(name, [])) and before[-1].active:
            raise _otherwise(before[-1], shipment, name)
        key = jobs.job_id(name, shipment.out, before[-1].attempt + 1 if before else 1)
        store(shipment)
        told = {"imagen": __version__, "stage": name, "out": shipment.out}
        try:
            cluster.submit(
                key,
                _command(words),
                shipment.runtime_env(),
                {**told, "config": shipment.digest},
            )
        except jobs.TakenError:
            continue  # by another client, just now
        job = cluster.info(key)
        if job is not None:
            return job, True


def store(shipment: Shipment) -> None:
    """Write the config where the jobs read it."""
    storage.put(shipment.config.path, configs.dump_yaml(shipment.tree).encode())


def running(
    known: Mapping[str, Sequence[JobInfo]], shipment: Shipment, name: str, words: Sequence[str]
) -> JobInfo | None:
    """Return the job that does just this now, else None. `known`: jobs by stage."""
    job = known[name][-1] if name in known else None
    return job if job and job.active and is_same(job, shipment, words) else None


def is_same(job: JobInfo, shipment: Shipment, words: Sequence[str]) -> bool:
    """Tell whether a job was given the same settings and the same command line."""
    return job.config == shipment.digest and job.command == _command(words)


def _command(words: Sequence[str]) -> str:
    return shlex.join(("python", *words))


def _otherwise(job: JobInfo, shipment: Shipment, name: str) -> RunsOtherwise:
    stored = f"with other settings (`{shipment.out}/{SUBMITTED}/{job.config}.yaml`)"
    other = f"by another command (`{job.command}`)"
    slug = name.replace(" ", "-")
    return RunsOtherwise(
        f"{name} is being run by job {job.id} {other if job.config == shipment.digest else stored}",
        f"wait for it, or stop it: python -m pipeline stop {slug} CONFIG",
        job,
    )
