"""One simulated training: who decides, on which market, at which costs."""

import statistics
from dataclasses import dataclass, field

from benchmarks.preemption.contenders import Ours
from benchmarks.preemption.market import Market, calm, events
from benchmarks.preemption.rays import Rays, clock
from benchmarks.preemption.training import Contender, Outcome, Training, Work, simulate

STARTS_S = (
    *(58.5, 19.2, 29.3, 22.6, 26.8, 17.7, 22.8, 37.2, 26.7, 18.7),  # after a loss
    *(25.1, 36.9, 38.8, 46.5, 35.8),  # to grow
)
"""RECOVERY_XEON2_202611.md: the time to the next step less Ray's part, of both ways, whose workers
are the same; for growth the time that training stood still."""
START_S = statistics.median(STARTS_S)
GONE_S = {"ours": 2.6, "rays": 6.5}
"""RECOVERY: Ray's part after a kill; the 60 s for a placement are not in it: they are simulated."""
TUNED_S, UNTUNED_S = 15.0, 69.0
"""How long a machine that says no goodbye counts as there: with the head's health checks of
infra/, and with Ray's defaults; shared/knowledge/ray.md, the runs `beststop` and `sigstop`."""
LOSSES = 1100
LONGEST = 30.0
"""A training that takes this many times as long as an undisturbed one is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated."""

    market: Market = field(default_factory=Market)
    fewest: int = 4
    factor: float = 1.0
    """Start of workers and checkpoints, times the measured."""
    save_s: float = 2.0
    checkpoint_every_s: float = 600.0
    """Of training with all workers."""
    silent_s: float = TUNED_S
    """How long a machine that vanishes counts as there: a setting of the head, so of all ways."""

    @property
    def work(self) -> Work:
        """The same for all contenders; at least 1,000 machines are lost while it is done."""
        most = self.market.slots
        return Work(
            total=LOSSES * self.market.lifetime_s,
            checkpoint_every=self.checkpoint_every_s * most,
            start_s=START_S * self.factor,
            save_s=self.save_s * self.factor,
        )

    @property
    def undisturbed_s(self) -> float:
        """How long it takes on machines that stay."""
        return self.market.boot_s + self.work.start_s + self.work.total / self.market.slots


WAYS = ("ours", "eager", "elastic", "elastic, asks", "fixed", "fixed, asks")
"""Ours; ours as it was, growing at once; Ray's elastic training; Ray's with all workers or none;
both also with a training function that asks for notices."""


def contender(way: str, training: Training, fewest: int, most: int) -> Contender:
    """Return who decides about a training of so many workers."""
    if way in ("ours", "eager"):
        return Ours(training, fewest, most, eager=way == "eager")
    fewest = most if way.startswith("fixed") else fewest
    return Rays(training, fewest, most, asks=way.endswith("asks"))


def detect_s(way: str, silent_s: float = TUNED_S) -> dict[str, float]:
    """Return how long a lost worker goes unnoticed, by the kind of event."""
    gone = GONE_S["ours" if way in ("ours", "eager") else "rays"]
    return {"gone": gone, "vanished": silent_s}


def run(way: str, case: Case, seed: int) -> Outcome:
    """Simulate a training to its end."""
    training = Training(case.work, detect_s(way, case.silent_s), case.market.boot_s)
    decides = contender(way, training, case.fewest, case.market.slots)
    with clock(decides):
        return simulate(decides, events(case.market, seed), LONGEST * case.undisturbed_s)


def on_demand(case: Case) -> Outcome:
    """Simulate a fixed number of workers on machines that stay."""
    most = case.market.slots
    training = Training(case.work, detect_s("fixed"), case.market.boot_s)
    decides = contender("fixed", training, most, most)
    with clock(decides):
        return simulate(decides, calm(most, case.market.boot_s))
