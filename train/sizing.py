"""How many workers a run has: decisions, without Ray and without a clock of their own.

train/ray_internals.py sees and acts; benchmarks/bench_preemption.py replays lost nodes against the
same functions.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from train import machines
from train.machines import Node, Wants

PATIENCE_S = 5.0
"""How long a start waits for machines that somebody uses: they may be those of the group before."""
WORTH = 0.5
"""A group grows when the room that it left unused has cost this share of what a restart costs.

A restart that comes anyway, of a lost machine, takes all room: where machines go often, growing at
once is paid for in vain. In benchmarks/PREEMPTION_SIM_202611.md 0.5 is at most half a point of
goodput behind growing at once, and up to 16 points ahead.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a run decides by."""

    nodes: Sequence[Node]
    """What the run holds of a node counts as free there."""
    wants: Wants
    """What one worker takes."""
    fewest: int
    most: int
    reserved: Sequence[Wants] | None = None
    """What Ray keeps for this run on each node, less than there is where other runs grow; None:
    nobody knows."""

    @property
    def room(self) -> int:
        """How many workers fit, at most as many as may be."""
        free = min(sum(node.room(self.wants) for node in self.nodes), self.most)
        if self.reserved is None:
            return free
        return min(free, sum(machines.fits(there, self.wants) for there in self.reserved))

    @property
    def size(self) -> int:
        """How many workers would fit, were all nodes idle; also more than may be."""
        return sum(node.size(self.wants) for node in self.nodes)

    @property
    def avoid(self) -> list[str]:
        """Nodes on which no worker is put."""
        return [node.id for node in self.nodes if node.trouble]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A healthy group, when a run decides about it."""

    workers: int
    going: Mapping[str, float]
    """Nodes of the group that go, and when."""
    saved_for: Collection[str] = ()
    """Those of which that was known when the group saved where it is."""
    unused: float = 0.0
    """Worker-seconds of room that it left unused since its start."""
    restart_s: float | None = None
    """How long its start took, from the decision to the first step; None: none was taken."""

    @property
    def may_grow(self) -> bool:
        """Whether it has paid enough for unused room to pay for a restart."""
        if self.restart_s is None:
            return False
        return self.unused >= WORTH * self.workers * self.restart_s


@dataclass(frozen=True, slots=True)
class Start:
    """Start a group of so many workers."""

    workers: int


@dataclass(frozen=True, slots=True)
class Resize:
    """Have the group save, then start it anew with so many workers."""

    workers: int
    reason: Literal["resize", "preemption"]


@dataclass(frozen=True, slots=True)
class Save:
    """Have the group save where it is: some of its nodes go, and without them it is too small."""

    gone: float
    """When the last of them goes; 0: any time."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Start nothing yet."""

    told: str
    """What people are told, empty: nothing yet."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Let the group be."""


def starting(seen: Seen, waited_s: float) -> Start | Wait:
    """Decide for a run without workers, which has waited since it lost the last ones."""
    patient = waited_s < PATIENCE_S
    if seen.room < seen.fewest or (seen.room < min(seen.size, seen.most) and patient):
        return Wait("" if patient else machines.told(seen.nodes, seen.wants))
    return Start(seen.room)


def is_due(since_s: float, every_s: float, going: Collection[str]) -> bool:
    """Tell whether to decide about a healthy group, `since_s` after its start or the last time."""
    return since_s >= every_s or bool(going)


def unused(seen: Seen, workers: int, passed_s: float) -> float:
    """Return the worker-seconds that a group of so many workers left unused."""
    return max(0, seen.room - workers) * passed_s


def running(seen: Seen, held: Held) -> Resize | Save | Stay:
    """Decide for a healthy group: it leaves nodes that go, and grows where that pays."""
    if held.going and seen.room >= seen.fewest:
        return Resize(seen.room, "preemption")
    if not held.going and seen.room > held.workers and held.may_grow:
        return Resize(seen.room, "resize")
    if held.going.keys() - held.saved_for:  # too few machines without them
        return Save(max(held.going.values()))
    return Stay()
