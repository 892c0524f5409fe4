"""A queue of items worked off by Ray actors that may die.

One call in flight for each actor, so that a death names the item that was being worked on; a dead
actor is replaced by a new one; an item that took `TRIES` actors with it is set aside. An exception
in an actor is a bug, not a death: it is raised here, with its traceback.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray.exceptions

from imagen.errors import ShardError

TRIES = 3

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


def dispatch(
    items: Sequence[Item],
    start: Callable[[], Any],
    call: Callable[[Any, Item], Any],
    actors: int,
) -> Generator[Outcome[Item]]:
    """Yield an outcome for each call; every item ends in exactly one value or error.

    `start` makes an actor, `call(actor, item)` starts the work and returns its reference. Raises
    what an actor raises, and ends all actors then.
    """
    queue, tries = deque(items), Counter[Item]()
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, Item]] = {}
    try:
        while queue or busy:
            while queue and len(busy) < actors:
                actor, item = idle.pop() if idle else start(), queue.popleft()
                busy[call(actor, item)] = actor, item
            while idle and not queue:
                ray.kill(idle.pop())  # its core may be what a waiting actor needs
            (ready, *_), _ = ray.wait(list(busy), num_returns=1)
            actor, item = busy.pop(ready)
            idle.append(actor)
            outcome = _outcome(ready, item, tries)
            if outcome.lost is not None or outcome.error is not None:
                ray.kill(idle.pop())
            if outcome.lost is not None:
                queue.append(item)
            yield outcome
    finally:
        for actor in [*idle, *(actor for actor, _ in busy.values())]:
            ray.kill(actor)


def _outcome(ready: Any, item: Item, tries: Counter[Item]) -> Outcome[Item]:
    try:
        return Outcome(item, ray.get(ready))
    except ray.exceptions.RayTaskError as err:  # a RayError, too, but nobody died
        raise err.cause from err
    except ray.exceptions.RayError as err:
        tries[item] += 1
        reason = " ".join((str(err).strip().splitlines() or [type(err).__name__])[-1].split())
    if tries[item] < TRIES:
        return Outcome(item, lost=reason)
    return Outcome(
        item,
        error=ShardError(
            f"`{item}` is set aside: it ended {TRIES} actors, the last with: {reason}",
            "look at this shard by itself; a lack of memory looks like this too",
        ),
    )
