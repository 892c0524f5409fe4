"""Ray's group of workers as ours: it saves before it ends, and gives its machines back at once.

The insides of Ray 2.60 that this takes for granted are those of train/ray_internals.py.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import ray
import ray.exceptions
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from train import notice

LOGGER = logging.getLogger(__name__)

LOOK_S = 0.05
REPLY_S = 10.0
SAVE_S = 900.0
"""Longest wait for a checkpoint before a healthy group is taken down."""
GROUP = "placement_group"
"""File in Ray's folder of the run that says what its workers occupy."""


class Group(WorkerGroup):
    """Ray's group of workers; one that fails gives its machines back, and without long goodbyes.

    A controller is the only one in its process, and has one group at a time.
    """

    current: ClassVar["Group | None"] = None
    error: ClassVar[Exception | None] = None
    """Why the newest group could not start."""

    def _start(self) -> None:
        Group.current, Group.error = self, None
        try:
            super()._start()
        except Exception as err:
            Group.error = err
            if self.has_started():  # Ray would forget it, and its machines would stay taken
                self.abort()
            raise

    def _create_placement_group(self, *args: Any, **kwargs: Any) -> Any:
        handle = super()._create_placement_group(*args, **kwargs)
        folder = str(self._train_run_context.run_config.storage_path)
        Path(folder, GROUP).write_text(handle.placement_group.id.hex())
        return handle

    def shutdown(self) -> None:
        """End the workers; a long goodbye only where none has failed."""
        if self.failed():
            self.abort()
        else:
            super().shutdown()

    def failed(self) -> str:
        """Return what the workers failed of, empty when none did."""
        status = self.get_latest_poll_status() if self.has_started() else None
        return status.get_error_string() if status and status.errors else ""

    def give_back(self) -> None:
        """Let go of the machines of a group that has failed, before it is taken down."""
        if self.has_started():
            self.get_worker_group_state().placement_group_handle.shutdown()

    def holds(self) -> dict[str, Counter[str]]:
        """Return what the workers hold of each node."""
        held: dict[str, Counter[str]] = {}
        for worker in self.get_workers() if self.has_started() else []:
            held.setdefault(worker.metadata.node_id, Counter()).update(worker.resources)
        return held

    def save(self, reason: str, park_s: float = notice.PARK_S) -> None:
        """Have all workers save a checkpoint and wait; return as well when one of them fails."""
        try:
            self._all(notice.ask, reason, park_s)
            deadline = time.monotonic() + SAVE_S
            while time.monotonic() < deadline:
                status = self.poll_status(timeout=REPLY_S)
                if status.errors or status.finished:
                    return
                if all(self._all(notice.parked)):
                    return
                time.sleep(LOOK_S)
        except (ray.exceptions.RayError, TimeoutError):
            LOGGER.warning("no checkpoint before the %s", reason, exc_info=True)

    def stepping_s(self) -> float | None:
        """Return for how long all workers have taken steps; None: not all do, or nobody knows."""
        try:
            told: list[float | None] = self._all(notice.stepping_s)
        except (ray.exceptions.RayError, TimeoutError):
            return None
        known = [since for since in told if since is not None]
        return min(known) if len(known) == len(told) else None

    def _all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        refs: Any = self.execute_async(function, *args)
        return ray.get(refs, timeout=REPLY_S)
