"""Who decides: Ray 2.60's policies, by its own deciding functions."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import ray.train
import ray.train.v2._internal.execution.scaling_policy.elastic as elastic
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

from benchmarks.preemption.market import Event
from benchmarks.preemption.training import NEVER, Phase, Training

RAYS_PLACEMENT_S, RAYS_VIEW_S, RAYS_RESIZE_S = 60.0, 20.0, 60.0
"""Ray 2.60's defaults: how long a start waits for machines; how old its view of the cluster may be;
between two looks for room."""
RAYS_WATCH_S = 5.0
"""Ray 2.60's default: how often its watcher looks for notices, from the start of a group on."""


class _Elastic(elastic.ElasticScalingPolicy):
    """Ray's own policy, told what Ray's coordinator would tell it."""

    view: tuple[str, ...] = ()

    def _maybe_send_resource_request(self) -> None:
        pass

    def _get_reserved_resources(self) -> Any:
        return {node: {"CPU": 1.0} for node in self.view}


class _Fixed(FixedScalingPolicy):
    view: tuple[str, ...] = ()

    def _maybe_send_resource_request(self) -> None:
        pass


class _Group:
    """What Ray's policy asks of a group of workers."""

    def __init__(self, start_time: float, num_workers: int) -> None:
        self.start_time, self.num_workers = start_time, num_workers


class Rays:
    """Ray 2.60 as it comes: elastic, or with a fixed number of workers.

    `asks`: the training function calls ray.train.get_preemption_info() each step, and at a notice
    does what its documentation recommends: one checkpoint, then it trains on.
    """

    def __init__(self, training: Training, fewest: int, most: int, asks: bool = False) -> None:
        fixed = fewest == most
        config = ray.train.ScalingConfig(
            num_workers=most if fixed else (fewest, most), resources_per_worker={"CPU": 1.0}
        )
        self.policy = _Fixed(config) if fixed else _Elastic(config)
        self.training, self.asks = training, asks
        self.ask_at = 0.0
        self.wanted: int | None = None
        self.started: float | None = None
        """When the group took its first step; None: not yet."""
        self.saved = False
        """Whether this group has saved for a notice; it does so once."""
        self.believed: dict[str, tuple[float, float]] = {}
        """When a machine came, and until when Ray takes it for alive."""

    def changed(self, event: Event | None) -> None:
        """Take note that something happened to a machine, or, None, that a phase has ended."""
        training = self.training
        self.ask_at = self.ask_at if training.phase is Phase.NONE else NEVER
        if event is not None:
            self._note(event)
        if training.phase is Phase.NONE:
            if self.wanted is not None:
                self._place()
            elif event is None:
                self.ask_at = training.now
        elif training.phase is Phase.PARKED and event is None:
            training.park(0.0)
        elif training.phase is Phase.STEPPING:
            self.started = training.now if self.started is None else self.started
            self.ask_at = self._next_look(self.started)

    def _note(self, event: Event) -> None:
        if event.kind == "up":
            self.believed[event.node] = (event.at, NEVER)
        elif event.kind in ("gone", "vanished"):
            silent = self.training.detect_s["vanished"] if event.kind == "vanished" else 0.0
            until = event.at + silent
            self.believed[event.node] = (self.believed[event.node][0], until)

    @property
    def _is_going(self) -> bool:
        """Whether Ray's controller waits for machines to go: it does not resize meanwhile."""
        return bool(self.training.going.keys() & self.training.group)

    def _next_look(self, started: float) -> float:
        """Return when Ray sees what has changed now; between its looks nothing else does."""
        since = self.training.now - started
        if self._is_going:
            sees = started + math.ceil(since / RAYS_WATCH_S - 1e-9) * RAYS_WATCH_S
            return max(self.training.now, sees) if self.asks and not self.saved else NEVER
        seen = math.ceil(self.training.now / RAYS_VIEW_S) * RAYS_VIEW_S - started
        return started + max(1, math.ceil(seen / RAYS_RESIZE_S)) * RAYS_RESIZE_S

    def decide(self) -> None:
        """Decide, now that it is `ask_at`."""
        self.ask_at = NEVER
        if self.training.phase is Phase.NONE:
            self._restart()
        elif self.training.phase is Phase.STEPPING and self._is_going:
            self.saved = True
            self.training.save()
        elif self.training.phase is Phase.STEPPING:
            self._resize()

    def _restart(self) -> None:
        self._look()
        decision = self.policy.make_decision_for_non_running_worker_group()
        self.wanted = None
        if isinstance(decision, ResizeDecision):
            self._want(decision.num_workers)
        else:
            self.ask_at = (self.training.now // RAYS_VIEW_S + 1) * RAYS_VIEW_S

    def _resize(self) -> None:
        self._look()
        group: Any = _Group(self.started or 0.0, self.training.size)
        status: Any = None
        decision = self.policy.make_decision_for_running_worker_group(group, status)
        if isinstance(decision, ResizeDecision):
            self.training.take_down()
            self._want(decision.num_workers)

    def _want(self, workers: int) -> None:
        self.wanted = workers
        self.ask_at = self.training.now + RAYS_PLACEMENT_S
        self._place()

    def _look(self) -> None:
        """Renew the policy's view of the cluster, as it was at the coordinator's last tick."""
        tick = self.training.now // RAYS_VIEW_S * RAYS_VIEW_S
        self.believed = {n: span for n, span in self.believed.items() if span[1] > tick}
        self.policy.view = tuple(n for n, (came, _) in self.believed.items() if came <= tick)

    def _place(self) -> None:
        """Start as soon as there are machines enough; Ray puts nothing on those that are to go."""
        assert self.wanted is not None, "a start has a size"
        free = self.training.up.keys() - self.training.going.keys()
        if len(free) >= self.wanted:
            nodes = sorted(free, key=lambda node: (self.training.up[node], node))
            self.training.start(frozenset(nodes[: self.wanted]))
            self.wanted, self.ask_at = None, NEVER
            self.started, self.saved = None, False


@contextlib.contextmanager
def clock(contender: Any) -> Iterator[None]:
    """Have Ray's policy live in the time of a simulation, and not tell of each decision."""
    module: Any = elastic
    before, level = module.time_monotonic, elastic.logger.level
    module.time_monotonic = lambda: contender.training.now + 1e-6
    elastic.logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        module.time_monotonic = before
        elastic.logger.setLevel(level)
