"""Who decides: our policy, by the functions that decide in a real training."""

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
