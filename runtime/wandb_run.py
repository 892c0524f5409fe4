"""Curves for Weights & Biases, when a config names a project: like TensorBoard's, on a server.

The run's id lies beside what it tells of, so that a stage that goes on adds to its curves. Nothing
here stops a stage: without a key or a network the curves are kept in files, to be sent later.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
import uuid
from dataclasses import dataclass
from typing import Any, Self

from imagen import storage
from imagen.errors import ConfigError

ID = "wandb-id"
"""File with the id of the run; without it, as in a copy of the config elsewhere, it is another."""
INIT_S, FINISH_S = 20.0, 60.0
"""How long a server may take to answer, and to take the last curves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a run of Weights & Biases is of."""

    project: str
    folder: str
    """Folder or URL of what it tells of; the run's id lies there."""
    name: str
    group: str
    """What is shown together."""
    part: str
    """The kind of work."""
    suffix: str = ""
    """Behind the folder's id, where two runs tell of one folder at once."""
    config: dict[str, Any]


def check(project: str) -> None:
    """Raise ConfigError when curves are to go to a project and the package is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"wandb is {project!r}, but the package wandb is not installed",
            "`pip install imagen-cascade[wandb]`, on all machines; or leave `wandb` out: "
            "TensorBoard has the same curves",
        )


class WandbRun:
    """One run of Weights & Biases, whose curves are over `images_seen`."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("images_seen")
        run.define_metric("*", step_metric="images_seen")

    @classmethod
    def open(cls, about: Description, otherwise: str) -> Self | None:
        """Begin the run, or go on with it; None when it can be neither sent nor kept.

        What keeps it from being sent is told on stderr, with where the curves are kept.
        `otherwise`: which files have them in any case.
        """
        try:
            return cls(_begin(about, _folder(about.folder)))
        except Exception as err:  # no package, key or network, or what a server thinks of it
            told = str(err).strip().splitlines() or [type(err).__name__]
        run, kept = None, f"not kept there: {otherwise} have them"
        with contextlib.suppress(Exception):
            folder = _folder(about.folder)
            run = cls(_begin(about, folder, mode="offline"))
            kept = f"kept in `{folder}`: send them with `wandb sync`"
        print(f"wandb: {told[0]}; the curves of {about.part} are {kept}", file=sys.stderr)
        return run

    def scalars(self, images_seen: int, values: dict[str, float]) -> None:
        """Add one value of each curve."""
        with contextlib.suppress(Exception):  # its process may be gone: the log has it all
            self._run.log({"images_seen": images_seen, **values})

    def close(self) -> None:
        """Send what is left, for a while."""
        with contextlib.suppress(Exception):
            self._run.finish()


def _begin(about: Description, folder: str, **more: Any) -> Any:
    """Begin a run, as wandb has it, with its files in a folder. Raises what keeps it from that."""
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=INIT_S,
        finish_timeout=FINISH_S,
        finish_timeout_raises=False,
    )
    return wandb.init(
        project=about.project,
        id=run_id(about.folder) + about.suffix,
        resume="allow",
        name=about.name,
        group=about.group,
        job_type=about.part,
        config=about.config,
        reinit="create_new",
        settings=settings,
        dir=folder,
        **more,
    )


def run_id(folder: str) -> str:
    """Return the id of a folder's curves, the same ever after."""
    path = storage.join(folder, ID)
    if not storage.exists(path):
        storage.put(path, uuid.uuid4().hex[:12].encode(), if_absent=True)
    return storage.get(path).decode()


def _folder(folder: str) -> str:
    """Return a local folder for wandb's own files; it makes a folder `wandb` in it."""
    if not storage.is_local(folder):
        return tempfile.mkdtemp(prefix="imagen-wandb-")
    os.makedirs(storage.local(folder), exist_ok=True)
    return storage.local(folder)
