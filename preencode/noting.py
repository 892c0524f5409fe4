"""What became of each call, noted in the result of a run and in its log."""

from typing import Any, Protocol

from imagen.errors import ConfigError, ImagenError
from preencode.dispatch import Outcome
from runtime import log


class Tally(Protocol):
    """The part of a result that every kind of run has."""

    lost_actors: int
    retried: int
    failed: dict[str, ImagenError]


def note(result: Tally, outcome: Outcome[Any], events: log.JsonLog) -> tuple[bool, int, Any]:
    """Note a lost actor, another try or a failure; return (is it the end of its item, pid, report).

    Actors answer with their process id and a report, or the error that names what is wrong. There
    is no report of what was lost or failed. Raises ConfigError of an actor at once: every shard
    would have it.
    """
    tar = str(outcome.item)
    if outcome.lost is not None:
        result.lost_actors += 1
        events.write(event="actor_lost", tar=tar, reason=outcome.lost)
        return False, 0, None
    if outcome.failed is not None:
        result.retried += 1
        events.write(event="retry", tar=tar, reason=outcome.failed.message)
        return False, 0, None
    pid, value = outcome.value if outcome.error is None else (0, outcome.error)
    if isinstance(value, ConfigError):
        raise value
    if isinstance(value, ImagenError):
        result.failed[tar] = value
        events.write(event="failed", tar=tar, reason=value.message)
        return True, pid, None
    return True, pid, value
