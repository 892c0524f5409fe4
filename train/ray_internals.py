"""All that uses the insides of Ray 2.60, behind one class: `ElasticTrainer`.

Ray Train 2.60 sizes a group of workers by what the nodes have in total, as it was up to 20 s ago.
So after a lost node it waits a minute for machines that are gone, it never starts beside somebody
who uses a CPU, it takes down a healthy group for machines that it cannot get, it starts anew on a
node that is being taken away, and it throws away what was trained since the last checkpoint. Here

- a group is sized by what is free now on nodes that answer and stay (`Policy`);
- a healthy group saves (train/notice.py) before it grows or leaves a drained node: no step is lost;
- a group that failed gives its machines back at once, and so does one that did not get to start;
- an error that comes again and again ends the run, also where workers cannot record it.

tests/train/test_ray_internals.py says what this file takes for granted, and fails when Ray changes.
"""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
import ray._private.state as ray_state
import ray.exceptions
import ray.train.torch
import ray.train.v2._internal.exceptions as train_errors
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.callbacks import placement_group_callback as cleaning
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.util.placement_group import PlacementGroup, remove_placement_group

from train import machines, notice
from train.attempts import Launch, WorkerFailed
from train.machines import Node, Wants

LOGGER = logging.getLogger(__name__)

LOOK_S = 0.25
PATIENCE_S = 5.0
"""How long a start waits for machines that somebody uses: they may be those of the group before."""
REPLY_S = 10.0
SAVE_S = 900.0
"""Longest wait for a checkpoint before a healthy group is taken down."""
LIMIT_FAILURES = 20
"""Failures in a row, without any progress between them, that end a run."""
NODE_LABEL = "ray.io/node-id"
GROUP = "placement_group"
"""File in Ray's folder of the run that says what its workers occupy."""


def look(own: Mapping[str, Wants] | None = None) -> list[Node]:
    """Return the nodes that are alive now; what `own` has at a node counts as free there."""
    free = ray_state.available_resources_per_node()
    return machines.survey(ray.nodes(), free, draining(), own or {})


def draining() -> dict[str, float]:
    """Return when each node is gone that is about to go; 0: any time."""
    return {node: at / 1000 for node, at in ray_state.state.get_draining_nodes().items()}


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
                time.sleep(LOOK_S / 5)
        except (ray.exceptions.RayError, TimeoutError):
            LOGGER.warning("no checkpoint before the %s", reason, exc_info=True)

    def _all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        refs: Any = self.execute_async(function, *args)
        return ray.get(refs, timeout=REPLY_S)


class Policy(ScalingPolicy):
    """How many workers a run has, by what is free now on nodes that answer and stay."""

    def __init__(self, scaling_config: Any, launch: Launch) -> None:
        super().__init__(scaling_config)
        self.launch = launch
        self.folder = Path()
        self.avoid: list[str] = []
        self.reason = ""
        self.left: set[str] = set()
        self.waits_since: float | None = None
        self.considered = 0.0
        self.failures, self.progress = 0, -1

    @property
    def wants(self) -> Wants:
        """What one worker takes."""
        takes: Any = self.scaling_config._resources_per_worker_not_none
        return {name: amount for name, amount in takes.items() if amount}

    def _get_num_workers_for_resource_request(self) -> int:
        return self.scaling_config.max_workers

    def after_controller_start(self, train_run_context: Any) -> None:
        """Prepare the controller's process."""
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "10")
        TrainController.worker_group_cls = Group
        self.folder = Path(train_run_context.run_config.storage_path)
        super().after_controller_start(train_run_context)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as soon as there is room for enough workers; say what is missing until then."""
        self._maybe_send_resource_request()
        if self.waits_since is None:
            self.waits_since = time.monotonic()
            if Group.current is not None:
                Group.current.give_back()
        nodes = look()
        room, size = self._room(nodes), sum(node.size(self.wants) for node in nodes)
        fewest, most = self.scaling_config.min_workers, self.scaling_config.max_workers
        patient = time.monotonic() - self.waits_since < PATIENCE_S
        if room < fewest or (room < min(size, most) and patient):
            if not patient:
                self._tell(machines.told(nodes, self.wants))
            time.sleep(LOOK_S)  # Ray asks again at once
            return NoopDecision()
        return self._resize(room, nodes)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave nodes that are drained, and grow; a healthy group is disturbed by nothing else."""
        del worker_group_status
        self._maybe_send_resource_request()
        group = Group.current
        if group is None or not group.has_started():
            return NoopDecision()
        held = group.holds()
        going = {node: at for node, at in draining().items() if node in held}
        since = max(worker_group_state.start_time, self.considered)
        due = time.monotonic() - since >= self.scaling_config.elastic_resize_monitor_interval_s
        if not (due or going):
            return NoopDecision()
        self.considered = time.monotonic()
        nodes = look(held)
        room = self._room(nodes)
        if going and room >= self.scaling_config.min_workers:
            return self._resize(room, nodes, "preemption")
        if not going and room > worker_group_state.num_workers:
            return self._resize(room, nodes, "resize")
        if going.keys() - self.left:  # too few machines without it
            self.left |= going.keys()
            group.save("preemption", notice.park_s(max(going.values())))
        return NoopDecision()

    def _room(self, nodes: Sequence[Node]) -> int:
        """Return how many workers fit, less what is reserved for other runs that grow."""
        room = sum(node.room(self.wants) for node in nodes)
        free = min(room, self.scaling_config.max_workers)
        keeper: Any = self._autoscaling_coordinator
        try:
            asked = keeper.get_reserved_resources.remote(self._requester_id, recompute=True)
            reserved: Any = ray.get(asked, timeout=REPLY_S)
        except (ray.exceptions.RayError, TimeoutError):
            return free  # who keeps the reservations is gone: take what there is
        return min(free, sum(machines.fits(there, self.wants) for there in reserved.values()))

    def _resize(self, room: int, nodes: Sequence[Node], reason: str = "") -> ResizeDecision:
        self.avoid = [node.id for node in nodes if node.trouble]
        self.reason, self.left, self.waits_since = reason, set(), None
        self._tell("")
        return ResizeDecision(room, dict(self.wants))

    def _tell(self, waiting: str) -> None:
        """Leave a word for the driver, which is on the same machine."""
        (self.folder / machines.WAITING).write_text(waiting)

    def before_controller_execute_resize_decision(self, resize_decision: ResizeDecision) -> None:
        """Have a healthy group save before it is taken down."""
        del resize_decision
        if self.reason and Group.current is not None and Group.current.has_started():
            Group.current.save(self.reason)
        self.reason = ""

    def on_controller_start_worker_group(
        self, *, scaling_config: Any, num_workers: int
    ) -> dict[str, str] | None:
        """Keep workers off nodes that go away or do not answer."""
        del scaling_config, num_workers
        return {NODE_LABEL: f"!in({','.join(self.avoid)})"} if self.avoid else None

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """End a run that fails again and again; raises WorkerFailed, which Ray does not retry."""
        del failure_decision
        if isinstance(Group.error, train_errors.WorkerGroupStartupTimeoutError):
            self._tell("machines went while workers were about to start on them")
            return
        progress = self.launch.count_alive()
        self.failures = self.failures + 1 if progress == self.progress else 1
        self.progress = progress
        if self.failures >= LIMIT_FAILURES:
            why = Group.error or (Group.current.failed() if Group.current is not None else "")
            raise WorkerFailed(f"{self.failures} failures in a row, the last one: {why}")


class ElasticTrainer(ray.train.torch.TorchTrainer):
    """TorchTrainer with the policy above; `launch` knows whether a run makes progress."""

    def __init__(self, *args: Any, launch: Launch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.launch = launch

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        # the policy does what the watcher is for, without waiting for the node's end
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        kwargs["scaling_policy"] = Policy(self.scaling_config, self.launch)
        # the cleaner asks the dashboard of whichever Ray it finds whether the controller is alive,
        # and takes its workers away when that one has never heard of it; `clean` does its work
        kept = [
            c for c in kwargs["callbacks"] if type(c) is not cleaning.PlacementGroupCleanerCallback
        ]
        kwargs["callbacks"] = kept
        return super()._initialize_and_run_controller(**kwargs)


def clean(folder: str) -> None:
    """Give back the machines of a group whose controller was killed; `folder` is Ray's own."""
    path = Path(folder, GROUP)
    if path.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(path.read_text())))


def release(reservations: Iterable[str]) -> None:
    """Give back the machines that Ray still keeps, for 180 seconds, for calls that were killed."""
    # a new cluster keeps nothing; of one that does not answer, nothing can be had
    with contextlib.suppress(ValueError, ray.exceptions.RayError, TimeoutError):
        keeper = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        cancelled: Any = [keeper.cancel_request.remote(name) for name in reservations]
        ray.get(cancelled, timeout=REPLY_S)
