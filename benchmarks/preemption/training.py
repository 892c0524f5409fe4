"""A training on machines that come and go, without a will: what it does is up to a contender."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from benchmarks.preemption.market import Event

NEVER = float("inf")


class Phase(Enum):
    """What a group of workers does; until NONE is over there is none."""

    NONE = "none"
    STARTING = "starting"
    STEPPING = "stepping"
    SAVING = "saving"
    PARKED = "parked"
    BROKEN = "broken"
    """A worker is lost, and nobody has noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is trained; work is in worker-seconds: a fixed number of images."""

    total: float
    checkpoint_every: float
    start_s: float
    """From the placement of a group to its first step."""
    save_s: float
    """A checkpoint for which training stands still."""


@dataclass(slots=True)
class Training:
    """The state of a training, and where its machines' time went, in worker-seconds."""

    work: Work
    detect_s: dict[str, float]
    """How long a lost worker goes unnoticed, by the kind of event."""
    boot_s: float = 0.0
    now: float = 0.0
    up: dict[str, float] = field(default_factory=dict)
    """Machines that are there, and when they came."""
    going: dict[str, float] = field(default_factory=dict)
    """Machines with a notice, and when they go."""
    phase: Phase = Phase.NONE
    until: float = NEVER
    """When the phase ends by itself."""
    group: frozenset[str] = frozenset()
    done: float = 0.0
    saved: float = 0.0
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """stepping, of which lost; standing: in a group; idle: in none; booting."""
    lost: float = 0.0
    machines_lost: int = 0
    starts: int = 0
    fruitless: int = 0
    """Starts in a row from one checkpoint that took no step."""
    most_fruitless: int = 0
    stepped: bool = False

    @property
    def size(self) -> int:
        """How many workers the group has."""
        return len(self.group)

    @property
    def ends(self) -> float:
        """When the work is done, if nothing happens."""
        if self.phase is not Phase.STEPPING:
            return NEVER
        return self.now + (self.work.total - self.done) / self.size

    def advance(self, to: float) -> None:
        """Let time pass in which nothing happens."""
        passed, self.now = to - self.now, to
        self.spent["idle"] += passed * (len(self.up) - len(self.group & self.up.keys()))
        inside = passed * len(self.group & self.up.keys())
        if self.phase is Phase.STEPPING:
            self.spent["stepping"] += inside
            self.done += inside
            self.stepped = self.stepped or inside > 0
        else:
            self.spent["standing"] += inside

    def happen(self, event: Event) -> None:
        """Have something happen to a machine now."""
        if event.kind == "up":
            self.up[event.node] = self.now
            self.spent["booting"] += self.boot_s
        elif event.kind == "notice":
            self.going[event.node] = event.gone
        else:
            del self.up[event.node]
            self.going.pop(event.node, None)
            self.machines_lost += 1
            if event.node in self.group and self.phase is not Phase.BROKEN:
                self._enter(Phase.BROKEN, self.detect_s[event.kind])

    def start(self, nodes: frozenset[str]) -> None:
        """Start a group of workers, one a machine, on machines that are there."""
        assert self.phase in (Phase.NONE, Phase.PARKED), "the group before has been taken down"
        assert nodes <= self.up.keys(), "workers are put on machines that are there"
        self.fruitless = 0 if self.stepped else self.fruitless + 1
        self.most_fruitless = max(self.most_fruitless, self.fruitless)
        self.group, self.stepped, self.starts = nodes, False, self.starts + 1
        self._enter(Phase.STARTING, self.work.start_s)

    def save(self) -> None:
        """Have the group save, then wait; nothing of its work is lost from then on."""
        self._enter(Phase.SAVING, self.work.save_s)

    def take_down(self) -> None:
        """End the group; what is in no checkpoint is lost."""
        self.lose()
        self.group = frozenset()
        self._enter(Phase.NONE)

    def lose(self) -> None:
        """Go back to the newest checkpoint."""
        every = self.work.checkpoint_every
        kept = max(self.saved, min(self.done, (self.done + 1e-6) // every * every))
        self.lost += self.done - kept
        self.done = self.saved = kept

    def end_phase(self) -> None:
        """Go on to what comes by itself after a phase."""
        if self.phase is Phase.SAVING:
            self.saved = self.done
            self._enter(Phase.PARKED)
        elif self.phase is Phase.BROKEN:
            self.take_down()
        else:
            assert self.phase in (Phase.STARTING, Phase.PARKED), "other phases have no end"
            self._enter(Phase.STEPPING)

    def park(self, seconds: float) -> None:
        """Wait so long, after a checkpoint, before training goes on."""
        self._enter(Phase.PARKED, seconds)

    def _enter(self, phase: Phase, seconds: float = NEVER) -> None:
        self.phase, self.until = phase, self.now + seconds


class Contender(Protocol):
    """Who decides about a training."""

    training: Training
    ask_at: float
    """When it wants to decide next."""

    def changed(self, event: Event | None) -> None:
        """Take note that something happened to a machine, or, None, that a phase has ended."""

    def decide(self) -> None:
        """Decide, now that it is `ask_at`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to."""

    training: Training
    finished: bool
    """False: given up because it took too long."""

    @property
    def paid(self) -> float:
        """Worker-seconds that were paid for."""
        return sum(self.training.spent.values())

    @property
    def goodput(self) -> float:
        """Share of the paid worker-seconds that is in the result."""
        return self.training.done / self.paid

    def share(self, kind: str) -> float:
        """Return the share of the paid worker-seconds that went a way."""
        lost = self.training.lost if kind == "lost" else self.training.spent[kind]
        return lost / self.paid


def simulate(contender: Contender, events: Iterator[Event], longest_s: float = NEVER) -> Outcome:
    """Run a training until its work is done, at most so long."""
    training, coming = contender.training, next(events, None)
    while True:
        at = min(training.ends, training.until, contender.ask_at, coming.at if coming else NEVER)
        if at >= longest_s or at == NEVER:
            training.lose()
            return Outcome(training, False)
        ended = at == training.ends
        training.advance(at)
        if ended:
            training.done = training.work.total
            return Outcome(training, True)
        if coming and coming.at <= at:
            training.happen(coming)
            contender.changed(coming)
            coming = next(events, None)
        elif training.until <= at:
            training.end_phase()
            contender.changed(None)
        else:
            contender.decide()
