"""A queue of items worked off by Ray actors that may die.

One call in flight for each actor, so that a death names the item that was being worked on; with
each call goes the item that the actor gets next, so that it can read ahead. A dead actor is
replaced by a new one. What failed in a way that may pass is tried again after a pause; an item that
took `TRIES` actors with it is set aside, unless it was their
nodes that went. An exception in an actor is a bug, not a death: it is raised here, with its
traceback.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray.exceptions

from imagen.errors import ImagenError, ShardError

TRIES = 3
VERDICT_S = 30.0
LOOK_S = 1.0
PAUSES_S = (2.0, 10.0)
"""Before the second and the third try of what failed: a bucket may be away for a moment."""
NODE_IS_GONE = "node has died"
"""In Ray's error when an actor's node was preempted or lost: not the fault of any item."""

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item]):
    """What became of one call: a value, or the reason why there is none."""

    item: Item
    value: Any = None
    error: ShardError | None = None
    """Set when the item is set aside."""
    lost: str | None = None
    """Set when an actor was lost and the item goes back into the queue."""
    failed: ImagenError | None = None
    """Set when the call failed in a way that may pass, and the item goes back into the queue."""


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    item: Any = None
    ahead: Any = None


def dispatch(
    items: Iterable[Item],
    start: Callable[[], Any],
    call: Callable[[Any, Item, Item | None], Any],
    actors: Callable[[], int],
    passing: Callable[[Any], ImagenError | None] = lambda _: None,
) -> Generator[Outcome[Item]]:
    """Yield an outcome for each call; every item ends in exactly one value or error.

    `start` makes an actor; `call(actor, item, ahead)` starts the work and returns its reference,
    `ahead` is the item which that actor gets next, if that is known; `passing(value)` returns the
    error of a value that is worth another try; `actors()`, how many there may be, is asked again
    and again, so that nodes which join are used. Raises what an actor raises, and ends all actors
    then.
    """
    queue, tries = deque(items), Counter[Item]()
    later: list[tuple[float, Item]] = []
    idle: list[_Worker] = []
    busy: dict[Any, _Worker] = {}
    try:
        while queue or busy or later:
            queue.extend(_due(later))
            room = actors() if queue else 0
            while queue and len(busy) < room:
                worker = idle.pop() if idle else _Worker(start())
                busy[_assign(worker, queue, call, room)] = worker
            while idle and not queue and not later:
                ray.kill(idle.pop().actor)  # its core may be what a waiting actor needs
            ready = _next(busy)
            if ready is None:
                continue
            worker = busy.pop(ready)
            idle.append(worker)
            outcome = _outcome(ready, worker, tries, passing)
            if outcome.lost is not None or outcome.error is not None:
                ray.kill(idle.pop().actor)
            if outcome.lost is not None:
                queue.append(outcome.item)
            if outcome.failed is not None:
                pause = PAUSES_S[min(tries[outcome.item], len(PAUSES_S)) - 1]
                later.append((time.monotonic() + pause, outcome.item))
            if worker.ahead is not None:  # what was read ahead is there, what was lost is not
                queue.appendleft(worker.ahead)
            yield outcome
    finally:
        for worker in [*idle, *busy.values()]:
            ray.kill(worker.actor)


def _due(later: list[tuple[float, Item]]) -> list[Item]:
    """Take out the items whose pause is over."""
    now = time.monotonic()
    due = [item for at, item in later if at <= now]
    later[:] = [(at, item) for at, item in later if at > now]
    return due


def _next(busy: dict[Any, _Worker]) -> Any | None:
    """Return a call that has ended; None after a moment, to look for pauses and nodes again."""
    if not busy:
        time.sleep(LOOK_S)
        return None
    ready, _ = ray.wait(list(busy), num_returns=1, timeout=LOOK_S)
    return ready[0] if ready else None


def _assign(
    worker: _Worker, queue: deque[Item], call: Callable[[Any, Item, Item | None], Any], actors: int
) -> Any:
    """Start the next item of the queue; tell the one after it while there are enough for all."""
    worker.item = queue.popleft()
    worker.ahead = queue.popleft() if len(queue) > actors else None
    return call(worker.actor, worker.item, worker.ahead)


def _outcome(
    ready: Any, worker: _Worker, tries: Counter[Any], passing: Callable[[Any], ImagenError | None]
) -> Outcome[Any]:
    item = worker.item
    try:
        value = ray.get(ready)
    except ray.exceptions.RayTaskError as err:  # a RayError, too, but nobody died
        err.cause.add_note(f"while `{item}` was worked on")
        raise err.cause from err
    except ray.exceptions.RayError as err:
        return _death(item, _cause(worker.actor, err), tries)
    failed = passing(value)
    if failed is not None:
        tries[item] += 1
        if tries[item] < TRIES:
            return Outcome(item, failed=failed)
    return Outcome(item, value)


def _cause(actor: Any, err: ray.exceptions.RayError) -> str:
    """Return why an actor is gone.

    Of one that cannot be reached Ray knows only after a while whether its process or its node died:
    a second for a process, about fifteen for a node without a word.
    """
    deadline = time.monotonic() + VERDICT_S
    while isinstance(err, ray.exceptions.ActorUnavailableError) and time.monotonic() < deadline:
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=VERDICT_S)
        except ray.exceptions.RayError as later:
            err = later
            time.sleep(0.1)
        else:
            break  # it is there again, but what it was asked to do is lost
    return str(err).strip() or type(err).__name__


def _death(item: Item, told: str, tries: Counter[Item]) -> Outcome[Item]:
    reason = " ".join(told.splitlines()[-1].split())
    tries[item] += NODE_IS_GONE not in told
    if tries[item] < TRIES:
        return Outcome(item, lost=reason)
    return Outcome(
        item,
        error=ShardError(
            f"`{item}` is set aside: it ended {TRIES} actors, the last with: {reason}",
            "look at this shard by itself; a lack of memory looks like this too",
        ),
    )
