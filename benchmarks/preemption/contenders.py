"""Who decides: our policy and Ray 2.60's, by the functions that decide in a real training."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import ray.train
import ray.train.v2._internal.execution.scaling_policy.elastic as rays
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

from benchmarks.preemption.market import Event
from benchmarks.preemption.training import NEVER, Phase, Training
from train import notice, sizing
from train.elastic import RESIZE_EVERY_S
from train.machines import Node
from train.sizing import Held, Resize, Save, Seen, Start

WANTS = {"GPU": 1.0}
OUR_POLL_S, OUR_PLACEMENT_S = 1.0, 15.0
"""Settings of runtime/session.py: how often Ray's controller asks the policy, and how long a start
waits for machines that it was promised."""
RAYS_PLACEMENT_S, RAYS_VIEW_S, RAYS_RESIZE_S = 60.0, 20.0, 60.0
"""Ray 2.60's defaults: the same wait; how old its view of the cluster may be; between two looks."""


class Ours:
    """train/sizing.py, and what train/ray_internals.py does around it.

    `eager`: as it was before, grow as soon as there is room.
    """

    def __init__(self, training: Training, fewest: int, most: int, eager: bool = False) -> None:
        self.training, self.fewest, self.most = training, fewest, most
        self.eager = eager
        self.ask_at = 0.0
        self.waits_since: float | None = 0.0
        self.considered = self.decided = 0.0
        self.unused, self.restart_s = 0.0, 0.0
        self.saved_for: set[str] = set()
        self.next_size: int | None = None
        """Decided, while the group saves or machines are placed."""
        self.park_until = NEVER
        self.is_new = True
        self.placed_until = 0.0
        self.nodes: dict[str, Node] = {}

    def changed(self, event: Event | None) -> None:
        """Take note that something happened to a machine, or, None, that a phase has ended."""
        training = self.training
        if event is not None:
            self._note(event)
        if training.phase is Phase.BROKEN:
            self.next_size, self.ask_at = None, NEVER
        elif training.phase is Phase.NONE:
            if self.waits_since is None:
                self.waits_since = training.now
            self.ask_at = max(training.now, self.placed_until)
        elif training.phase is Phase.PARKED and event is None and self.next_size is None:
            training.park(self.park_until - training.now)
        elif training.phase is Phase.PARKED and self.next_size is not None:
            self._place(self.next_size)
        elif event is None and training.phase is Phase.STEPPING and self.is_new:
            self.considered, self.is_new, self.unused = training.now, False, 0.0
            self.restart_s = 0.0 if self.eager else training.now - self.decided
        if training.phase in (Phase.STEPPING, Phase.PARKED):
            self.ask_at = self._next_look()

    def _note(self, event: Event) -> None:
        trouble = "is being drained" if event.kind == "notice" else ""
        if event.kind in ("up", "notice"):
            self.nodes[event.node] = Node(event.node, event.node, WANTS, WANTS, trouble)
        else:
            del self.nodes[event.node]

    def _next_look(self) -> float:
        training = self.training
        if training.going.keys() & training.group:
            return training.now + OUR_POLL_S
        # looks at which nothing was to be seen are left out
        looks = int((training.now - self.considered) / RESIZE_EVERY_S + 1e-9)
        self.considered += looks * RESIZE_EVERY_S
        return self.considered + RESIZE_EVERY_S

    def decide(self) -> None:
        """Decide, now that it is `ask_at`."""
        self.ask_at = NEVER
        if self.training.phase is Phase.NONE:
            self._start()
        elif self.training.phase in (Phase.STEPPING, Phase.PARKED):
            self._run()

    def _seen(self) -> Seen:
        return Seen(
            nodes=list(self.nodes.values()), wants=WANTS, fewest=self.fewest, most=self.most
        )

    def _start(self) -> None:
        assert self.waits_since is not None, "a run without workers waits"
        decision = sizing.starting(self._seen(), self.training.now - self.waits_since)
        if isinstance(decision, Start):
            self.decided = self.training.now
            self._place(decision.workers)
        elif self.training.now < self.waits_since + sizing.PATIENCE_S:
            self.ask_at = self.waits_since + sizing.PATIENCE_S

    def _run(self) -> None:
        training = self.training
        going = {node: at for node, at in training.going.items() if node in training.group}
        passed = training.now - self.considered
        if not sizing.is_due(passed + 1e-6, RESIZE_EVERY_S, going):
            return
        self.considered, seen = training.now, self._seen()
        self.unused += sizing.unused(seen, training.size, passed)
        held = Held(
            workers=training.size,
            going=going,
            saved_for=self.saved_for,
            unused=self.unused,
            restart_s=self.restart_s,
        )
        decision = sizing.running(seen, held)
        if isinstance(decision, Resize):
            self.decided, self.next_size = training.now, decision.workers
            if training.phase is Phase.PARKED:
                self._place(decision.workers)
            else:
                training.save()
        elif isinstance(decision, Save):
            self._save(decision.gone, going)
        elif seen.room > training.size:
            self.ask_at = training.now + RESIZE_EVERY_S

    def _save(self, gone: float, going: dict[str, float]) -> None:
        training = self.training
        self.saved_for |= going.keys()
        self.park_until = gone + notice.PARK_S
        if training.phase is Phase.PARKED:
            training.park(self.park_until - training.now)
        else:
            training.save()

    def _place(self, workers: int) -> None:
        """Start on machines that stay; where some have gone meanwhile, look anew."""
        training = self.training
        free = [node.id for node in self.nodes.values() if not node.trouble]
        self.next_size = None
        self.saved_for = set()
        if len(free) < workers:
            training.take_down()
            self.waits_since = training.now
            self.ask_at = self.placed_until = training.now + OUR_PLACEMENT_S
            return
        self.waits_since, self.is_new = None, True
        training.start(frozenset(free[:workers]))


class _Elastic(rays.ElasticScalingPolicy):
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
    """Ray 2.60 as it comes: elastic, or with a fixed number of workers."""

    def __init__(self, training: Training, fewest: int, most: int) -> None:
        fixed = fewest == most
        config = ray.train.ScalingConfig(
            num_workers=most if fixed else (fewest, most), resources_per_worker={"CPU": 1.0}
        )
        self.policy = _Fixed(config) if fixed else _Elastic(config)
        self.training = training
        self.ask_at = 0.0
        self.wanted: int | None = None
        self.started = 0.0
        self.believed: dict[str, tuple[float, float]] = {}
        """When a machine came, and until when Ray takes it for alive."""

    def changed(self, event: Event | None) -> None:
        """Take note that something happened to a machine, or, None, that a phase has ended."""
        training = self.training
        if event is not None:
            self._note(event)
        if training.phase is Phase.NONE:
            if self.wanted is not None:
                self._place()
            elif event is None:
                self.ask_at = training.now
        elif training.phase is Phase.STEPPING:
            if event is None:
                self.started = training.now
            self.ask_at = self._next_look()
        else:
            self.ask_at = NEVER

    def _note(self, event: Event) -> None:
        if event.kind == "up":
            self.believed[event.node] = (event.at, NEVER)
        elif event.kind in ("gone", "vanished"):
            until = event.at + self.training.detect_s[event.kind]
            self.believed[event.node] = (self.believed[event.node][0], until)

    def _next_look(self) -> float:
        """Return when the policy sees what has changed now; between its looks nothing else does."""
        seen = math.ceil(self.training.now / RAYS_VIEW_S) * RAYS_VIEW_S - self.started
        return self.started + max(1, math.ceil(seen / RAYS_RESIZE_S)) * RAYS_RESIZE_S

    def decide(self) -> None:
        """Decide, now that it is `ask_at`."""
        training = self.training
        self.ask_at = NEVER
        self._look()
        if training.phase is Phase.NONE:
            decision = self.policy.make_decision_for_non_running_worker_group()
            self.wanted = None
            if isinstance(decision, ResizeDecision):
                self.wanted = decision.num_workers
                self.ask_at = training.now + RAYS_PLACEMENT_S
                self._place()
            else:
                self.ask_at = (training.now // RAYS_VIEW_S + 1) * RAYS_VIEW_S
        elif training.phase is Phase.STEPPING:
            group: Any = _Group(self.started, training.size)
            status: Any = None
            decision = self.policy.make_decision_for_running_worker_group(group, status)
            if isinstance(decision, ResizeDecision):
                training.take_down()
                self.wanted = decision.num_workers
                self.ask_at = training.now + RAYS_PLACEMENT_S
                self._place()

    def _look(self) -> None:
        """Renew the policy's view of the cluster, as it was at the coordinator's last tick."""
        tick = self.training.now // RAYS_VIEW_S * RAYS_VIEW_S
        self.believed = {n: span for n, span in self.believed.items() if span[1] > tick}
        self.policy.view = tuple(n for n, (came, _) in self.believed.items() if came <= tick)

    def _place(self) -> None:
        """Start as soon as there are machines enough, also on those that are about to go."""
        assert self.wanted is not None, "a start has a size"
        if len(self.training.up) >= self.wanted:
            nodes = sorted(self.training.up, key=lambda node: self.training.up[node])
            self.training.start(frozenset(nodes[: self.wanted]))
            self.wanted, self.ask_at = None, NEVER


@contextlib.contextmanager
def clock(contender: Any) -> Iterator[None]:
    """Have Ray's policy live in the time of a simulation, and not tell of each decision."""
    module: Any = rays
    before, level = module.time_monotonic, rays.logger.level
    module.time_monotonic = lambda: contender.training.now + 1e-6
    rays.logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        module.time_monotonic = before
        rays.logger.setLevel(level)
