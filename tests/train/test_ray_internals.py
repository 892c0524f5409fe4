"""What train/ray_internals.py takes for granted of Ray: when one of these fails, Ray has changed.

Look then at what the file says of Ray's ways, and run tests/train/test_nodes.py with the new Ray.
"""

import inspect
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
import ray._private.state
import ray._raylet
import ray.train.torch
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import (
    Worker,
    WorkerGroup,
    WorkerGroupPollStatus,
    WorkerGroupState,
)

from runtime import session
from train import elastic, ray_internals
from train.attempts import Launch, WorkerFailed
from train.job import Job
from train.machines import WAITING


def source(what: Any) -> str:
    return " ".join(inspect.getsource(what).split())


def parameters(function: Any) -> list[str]:
    names = list(inspect.signature(function).parameters)
    # Ray adds one to the methods of actors that it has started in this process
    return [name for name in names if name != "_ray_trace_ctx"]


def test_this_ray_is_one_that_we_know():
    assert ray.__version__.startswith(elastic.RAY), (
        "read the insides again, then change elastic.RAY"
    )
    assert elastic._internals() is ray_internals


def test_the_trainer_makes_its_controller_where_ours_is_put_in():
    make = ray.train.torch.TorchTrainer._initialize_and_run_controller
    assert parameters(make) == ["self", "controller_init_kwargs"]
    assert {"scaling_policy", "callbacks"} <= set(parameters(TrainController.__init__))
    fit = source(ray.train.torch.TorchTrainer.fit)
    assert "scaling_policy=create_scaling_policy(self.scaling_config)" in fit
    assert "callbacks=self._create_default_callbacks()" in fit
    assert "PlacementGroupCleanerCallback()" in source(
        ray.train.torch.TorchTrainer._create_default_callbacks
    )
    assert ray_internals.cleaning.PlacementGroupCleanerCallback is PlacementGroupCleanerCallback


def test_the_controller_uses_the_group_and_the_hooks_that_we_replace():
    assert TrainController.worker_group_cls is WorkerGroup
    assert "self.worker_group_cls.create(" in source(TrainController._start_worker_group)
    assert "callback.on_controller_start_worker_group(" in source(
        TrainController._start_worker_group
    )
    resize = source(TrainController._execute_resize_decision)
    assert resize.index('"before_controller_execute_resize_decision"') < resize.index(
        "self._shutdown_worker_group()"
    )
    assert '"before_controller_execute_failure_decision"' in source(
        TrainController._execute_failure_decision
    )
    assert '"after_controller_start"' in source(TrainController._start)
    assert "[ self._scaling_policy, ]" in source(TrainController.__init__)  # it is a callback, too


@pytest.mark.parametrize(
    "name",
    [
        "after_controller_start",
        "on_controller_start_worker_group",
        "before_controller_execute_failure_decision",
        "before_controller_execute_resize_decision",
    ],
)
def test_our_policy_has_rays_hooks_with_rays_parameters(name: str):
    assert parameters(getattr(ray_internals.Policy, name)) == parameters(
        getattr(ControllerCallback, name)
    )


def test_a_policy_decides_what_we_decide():
    assert ScalingPolicy.__abstractmethods__ == {
        "make_decision_for_non_running_worker_group",
        "make_decision_for_running_worker_group",
        "_get_num_workers_for_resource_request",
    }
    for name in ScalingPolicy.__abstractmethods__:
        ours, rays = getattr(ray_internals.Policy, name), getattr(ScalingPolicy, name)
        assert parameters(ours) == parameters(rays)
    assert parameters(ResizeDecision) == ["num_workers", "resources_per_worker"]
    assert "train-{train_run_context.run_id}" in source(ScalingPolicy.after_controller_start)
    config = ray.train.ScalingConfig(num_workers=(1, 3), resources_per_worker={"CPU": 2.0})
    policy = ray_internals.Policy(config, Launch("x", "one"))
    assert policy.wants == {"CPU": 2.0}
    assert policy._get_num_workers_for_resource_request() == 3
    assert isinstance(inspect.getattr_static(ScalingPolicy, "_autoscaling_coordinator"), property)


def test_a_group_of_workers_is_built_as_ours_expects():
    assert parameters(WorkerGroup._start) == ["self"]
    assert "if not self.has_started(): " in source(WorkerGroup._start)  # else it forgets machines
    assert "DefaultPlacementGroupHandle(pg)" in source(WorkerGroup._create_placement_group)
    assert "self._create_placement_group(" in source(WorkerGroup._start_impl)
    assert "self._worker_group_state.shutdown()" in source(WorkerGroup.abort)
    for name in ("shutdown", "abort", "get_workers", "has_started", "get_worker_group_state"):
        assert parameters(getattr(WorkerGroup, name)) == ["self"]
    assert parameters(WorkerGroup.poll_status) == ["self", "timeout"]
    assert parameters(WorkerGroup.execute_async) == ["self", "fn", "fn_args", "fn_kwargs"]
    assert {"resources", "metadata"} <= set(parameters(Worker))
    assert {"start_time", "placement_group_handle"} <= set(parameters(WorkerGroupState))
    for name in ("errors", "finished", "get_error_string"):
        assert hasattr(WorkerGroupPollStatus, name)
    assert issubclass(WorkerGroupStartupTimeoutError, Exception)


def test_reservations_are_asked_for_and_given_back_as_we_do():
    keeper = coordinator._AutoscalingCoordinatorActor
    assert parameters(keeper.get_reserved_resources) == ["self", "requester_id", "recompute"]
    assert parameters(keeper.cancel_request) == ["self", "requester_id"]
    make = source(coordinator.get_or_create_autoscaling_coordinator)
    assert 'name="AutoscalingCoordinator", namespace="AutoscalingCoordinator"' in make


def test_the_state_of_the_cluster_is_where_we_look():
    assert callable(ray._private.state.available_resources_per_node)
    assert callable(ray._private.state.state.get_draining_nodes)
    insides: Any = ray._raylet
    assert insides.RAY_NODE_ID_KEY == ray_internals.NODE_LABEL


def test_every_setting_of_ray_train_is_one_that_ray_reads():
    known = set(constants.ENV_VARS_TO_PROPAGATE)
    ours = {name for name in session.SETTINGS if name.startswith("RAY_TRAIN_")}
    assert ours <= known
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" in known


class Worn(Launch):
    """A launch of which no start ever gets anywhere."""

    def count_alive(self) -> int:
        return 0


def test_a_failure_that_comes_again_and_again_ends_the_run(tmp_path: Path, monkeypatch):
    config = ray.train.ScalingConfig(num_workers=(1, 1))
    policy = ray_internals.Policy(config, Worn(str(tmp_path), "one"))
    monkeypatch.setattr(ray_internals.Group, "error", RuntimeError("no route to host"))
    for _ in range(ray_internals.LIMIT_FAILURES - 1):
        policy.before_controller_execute_failure_decision(None)
    with pytest.raises(WorkerFailed, match=r"20 failures in a row, the last one: no route to host"):
        policy.before_controller_execute_failure_decision(None)


def test_failures_between_which_there_is_progress_are_no_reason_to_end(tmp_path: Path):
    launch = Launch(str(tmp_path), "one")
    config = ray.train.ScalingConfig(num_workers=(1, 1))
    policy = ray_internals.Policy(config, launch)
    for number in range(3 * ray_internals.LIMIT_FAILURES):
        policy.before_controller_execute_failure_decision(None)
        launch.alive(number // 2)


def test_a_start_for_which_machines_are_missing_is_no_failure(tmp_path: Path, monkeypatch):
    config = ray.train.ScalingConfig(num_workers=(1, 1))
    policy = ray_internals.Policy(config, Worn(str(tmp_path), "one"))
    policy.folder = tmp_path
    late = WorkerGroupStartupTimeoutError(num_workers=2)
    monkeypatch.setattr(ray_internals.Group, "error", late)
    for _ in range(3 * ray_internals.LIMIT_FAILURES):
        policy.before_controller_execute_failure_decision(None)
    assert "machines went while workers were about to start" in Path(tmp_path, WAITING).read_text()


@pytest.mark.parametrize("failure", [GetTimeoutError("busy"), RayActorError(), ValueError("none")])
def test_whoever_keeps_reservations_and_does_not_answer_stops_no_run(monkeypatch, failure):
    def none(*_: object, **options: object) -> None:
        assert options.get("timeout", 0) == ray_internals.REPLY_S or "namespace" in options
        raise failure

    name = "get_actor" if isinstance(failure, ValueError) else "get"
    monkeypatch.setattr(ray, "get_actor", lambda *_, **__: MagicMock())
    monkeypatch.setattr(ray, name, none)
    ray_internals.release(["earlier"])


def test_another_ray_gets_its_own_trainer_and_a_warning(helpers, tmp_path, monkeypatch, capsys):
    job = Job(helpers.make_config(str(tmp_path)), "base", "one")
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    trainer = elastic._trainer(job, {"CPU": 1.0}, str(tmp_path))
    assert type(trainer) is ray.train.torch.TorchTrainer
    assert "Ray 2.61.0 is not 2.60.x: Ray's own elastic training is used" in capsys.readouterr().err
    assert not Path(tmp_path, WAITING).exists()
