"""What uses the insides of Ray 2.60, with train/ray_group.py, behind one class: `ElasticTrainer`.

Ray Train 2.60 sizes a group of workers by what the nodes have in total, as it was up to 20 s ago.
So after a lost node it waits a minute for machines that are gone, it never starts beside somebody
who uses a CPU, it takes down a healthy group for machines that it cannot get, it starts anew on a
node that is being taken away, and it throws away what was trained since the last checkpoint. Here

- a group is sized by what is free now on nodes that answer and stay (`Policy`);
- a healthy group saves (train/notice.py) before it grows or leaves a drained node: no step is lost;
- it grows when that pays for the restart (train/sizing.py, where all sizes are decided);
- a group that failed gives its machines back at once, and so does one that did not get to start;
- an error that comes again and again ends the run, also where workers cannot record it.

tests/train/test_ray_internals.py says what both take for granted, and fails when Ray changes.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
from ray.util.placement_group import PlacementGroup, remove_placement_group

from train import machines, notice, sizing
from train.attempts import Launch, WorkerFailed
from train.machines import Node, Wants
from train.ray_group import GROUP, REPLY_S, Group
from train.sizing import Held, Resize, Save, Seen, Start

LOOK_S = 0.25
LIMIT_FAILURES = 20
"""Failures in a row, without any progress between them, that end a run."""
NODE_LABEL = "ray.io/node-id"


def look(own: Mapping[str, Wants] | None = None) -> list[Node]:
    """Return the nodes that are alive now; what `own` has at a node counts as free there."""
    free = ray_state.available_resources_per_node()
    return machines.survey(ray.nodes(), free, draining(), own or {})


def draining() -> dict[str, float]:
    """Return when each node is gone that is about to go; 0: any time."""
    return {node: at / 1000 for node, at in ray_state.state.get_draining_nodes().items()}


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
        self.considered = self.decided = 0.0
        self.unused = 0.0
        self.restart_s: float | None = None
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
        self._stop_if_asked(None)
        if self.waits_since is None:
            self.waits_since = time.monotonic()
            if Group.current is not None:
                Group.current.give_back()
        seen = self._see()
        decision = sizing.starting(seen, time.monotonic() - self.waits_since)
        if isinstance(decision, Start):
            return self._resize(decision.workers, seen)
        if decision.told:
            self._tell(decision.told)
        time.sleep(LOOK_S)  # Ray asks again at once
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave nodes that are drained, and grow; a healthy group is disturbed by nothing else."""
        del worker_group_status
        self._maybe_send_resource_request()
        group = Group.current
        if group is None or not group.has_started():
            return NoopDecision()
        self._stop_if_asked(group)
        held = group.holds()
        going = {node: at for node, at in draining().items() if node in held}
        since = max(worker_group_state.start_time, self.considered)
        every_s = self.scaling_config.elastic_resize_monitor_interval_s
        if not sizing.is_due(time.monotonic() - since, every_s, going):
            return NoopDecision()
        self.considered = time.monotonic()
        seen, workers = self._see(held), worker_group_state.num_workers
        self.unused += sizing.unused(seen, workers, self.considered - since)
        if self.restart_s is None and seen.room > workers:
            self.restart_s = self._cost(group)
        decision = sizing.running(
            seen,
            Held(
                workers=workers,
                going=going,
                saved_for=self.left,
                unused=self.unused,
                restart_s=self.restart_s,
            ),
        )
        if isinstance(decision, Resize):
            return self._resize(decision.workers, seen, decision.reason)
        if isinstance(decision, Save):
            self.left |= going.keys()
            group.save("preemption", notice.park_s(decision.gone))
        return NoopDecision()

    def _cost(self, group: Group) -> float | None:
        """Return how long the group's start took, up to its first step; None: it took none yet."""
        stepping_s = group.stepping_s()
        return None if stepping_s is None else time.monotonic() - stepping_s - self.decided

    def _stop_if_asked(self, group: Group | None) -> None:
        """Have a group save when the driver asks for it, which then ends, and the group with it."""
        done = self.folder / machines.STOPPED
        if (self.folder / machines.STOP).exists() and not done.exists():
            if group is not None:
                group.save("stop")
            done.touch()

    def _see(self, held: Mapping[str, Wants] | None = None) -> Seen:
        """Look at the machines; what `held` has at a node counts as free there."""
        return Seen(
            nodes=look(held),
            wants=self.wants,
            fewest=self.scaling_config.min_workers,
            most=self.scaling_config.max_workers,
            reserved=self._reserved(),
        )

    def _reserved(self) -> list[Wants] | None:
        """Return what is reserved for this run on each node, less where other runs grow."""
        keeper: Any = self._autoscaling_coordinator
        try:
            asked = keeper.get_reserved_resources.remote(self._requester_id, recompute=True)
            reserved: Any = ray.get(asked, timeout=REPLY_S)
        except (ray.exceptions.RayError, TimeoutError):
            return None  # who keeps the reservations is gone: take what there is
        return list(reserved.values())

    def _resize(self, workers: int, seen: Seen, reason: str = "") -> ResizeDecision:
        self.avoid = seen.avoid
        self.reason, self.left, self.waits_since = reason, set(), None
        self.decided, self.unused, self.restart_s = time.monotonic(), 0.0, None
        self._tell("")
        return ResizeDecision(workers, dict(seen.wants))

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
