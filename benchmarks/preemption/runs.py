"""One simulated training: who decides, on which market, at which costs."""

import statistics
from dataclasses import dataclass, field

from benchmarks.preemption.contenders import Ours, Rays, clock
from benchmarks.preemption.market import Market, calm, events
from benchmarks.preemption.training import Contender, Outcome, Training, Work, simulate

STARTS_S = (
    *(58.5, 19.2, 29.3, 22.6, 26.8, 17.7, 22.8, 37.2, 26.7, 18.7),  # after a loss
    *(25.1, 36.9, 38.8, 46.5, 35.8),  # to grow
)
"""RECOVERY_XEON2_202611.md: the time to the next step less Ray's part, of both ways, whose workers
are the same; for growth the time that training stood still."""
START_S = statistics.median(STARTS_S)
OUR_DETECT_S = {"gone": 2.6, "vanished": 15.0}
"""RECOVERY: Ray's part after a kill. A machine that says no goodbye: shared/knowledge/ray.md, the
run `beststop`, with the head's settings that infra/README.md advises."""
RAYS_DETECT_S = {"gone": 6.5, "vanished": 69.0}
"""RECOVERY: Ray's part after a kill, less the 60 s for a placement, which are simulated; and the
run `sigstop`."""
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


WAYS = ("ours", "eager", "elastic", "fixed")
"""Ours; ours as it was, growing at once; Ray's elastic training; Ray's with all workers or none."""


def run(way: str, case: Case, seed: int) -> Outcome:
    """Simulate a training to its end."""
    most = case.market.slots
    if way in ("ours", "eager"):
        training = Training(case.work, OUR_DETECT_S, case.market.boot_s)
        contender: Contender = Ours(training, case.fewest, most, eager=way == "eager")
    else:
        training = Training(case.work, RAYS_DETECT_S, case.market.boot_s)
        contender = Rays(training, most if way == "fixed" else case.fewest, most)
    with clock(contender):
        return simulate(contender, events(case.market, seed), LONGEST * case.undisturbed_s)


def on_demand(case: Case) -> Outcome:
    """Simulate a fixed number of workers on machines that stay."""
    most = case.market.slots
    training = Training(case.work, RAYS_DETECT_S, case.market.boot_s)
    contender = Rays(training, most, most)
    with clock(contender):
        return simulate(contender, calm(most, case.market.boot_s))
