"""Curves for Weights & Biases, when a config names a project: like TensorBoard's, on a server.

The run's id lies in the run directory, so that a training that goes on adds to its curves. Nothing
here stops a training: without a key or a network the curves are kept in files, to be sent later.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
import uuid
from typing import Any, Self

from imagen import config as configs
from imagen import storage
from imagen.errors import ConfigError
from train.job import Job

ID = "wandb-id"
"""File with the id of the run; without it, as in a copy of the config elsewhere, it is another."""
FOLDER = "wandb"
INIT_S, FINISH_S = 20.0, 60.0
"""How long a server may take to answer, and to take the last curves."""


def check(project: str) -> None:
    """Raise ConfigError when curves are to go to a project and the package is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"wandb is {project!r}, but the package wandb is not installed",
            "`pip install imagen-cascade[wandb]`, on all machines; or leave `wandb` out: "
            "TensorBoard has the same curves",
        )


class Wandb:
    """One run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("images_seen")
        run.define_metric("*", step_metric="images_seen")

    @classmethod
    def open(cls, job: Job, part: str = "train") -> Self | None:
        """Open the run of a job's curves if its config asks for one; `part`: train or validation.

        What keeps it from being sent is told on stderr; the curves are then kept in files.
        """
        if not job.train.wandb:
            return None
        try:
            return cls(_begin(job, part, _folder(job.run_dir)))
        except Exception as err:  # no package, key or network, or what a server thinks of it
            told = str(err).strip().splitlines() or [type(err).__name__]
        run, kept = None, "not kept there: log.jsonl and TensorBoard have them"
        with contextlib.suppress(Exception):
            folder = _folder(job.run_dir)
            run = cls(_begin(job, part, folder, mode="offline"))
            kept = f"kept in `{folder}`: send them with `wandb sync`"
        print(f"wandb: {told[0]}; the curves of {part} are {kept}", file=sys.stderr)
        return run

    def scalars(self, images_seen: int, values: dict[str, float]) -> None:
        """Add one value of each curve."""
        with contextlib.suppress(Exception):  # its process may be gone: the log has it all
            self._run.log({"images_seen": images_seen, **values})

    def close(self) -> None:
        """Send what is left, for a while."""
        with contextlib.suppress(Exception):
            self._run.finish()


def _begin(job: Job, part: str, folder: str, **more: Any) -> Any:
    """Begin a run, as wandb has it, with its files in a folder. Raises what keeps it from that."""
    import wandb

    return wandb.init(**_settings(job, part), dir=folder, **more)


def _settings(job: Job, part: str) -> dict[str, Any]:
    """Return what wandb.init takes. Training and validation write at once: two runs, one group."""
    import wandb

    name = f"{job.config.name}/{job.member}"
    own = run_id(job.run_dir)
    return {
        "project": job.train.wandb,
        "id": own if part == "train" else f"{own}-{part}",
        "resume": "allow",
        "name": name if part == "train" else f"{name} {part}",
        "group": name,
        "job_type": part,
        "config": configs.to_tree(job.config),
        "reinit": "create_new",
        "settings": wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=False,
        ),
    }


def run_id(run_dir: str) -> str:
    """Return the id of a run directory's curves, the same ever after."""
    path = storage.join(run_dir, ID)
    if not storage.exists(path):
        storage.put(path, uuid.uuid4().hex[:12].encode(), if_absent=True)
    return storage.get(path).decode()


def _folder(run_dir: str) -> str:
    """Return a local folder for wandb's own files; it makes a folder `wandb` in it."""
    if not storage.is_local(run_dir):
        return tempfile.mkdtemp(prefix="imagen-wandb-")
    os.makedirs(storage.local(run_dir), exist_ok=True)
    return storage.local(run_dir)
