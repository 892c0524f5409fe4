"""What became of each call, noted in the result of a run and in its log."""

import os
import socket
from typing import Any, NamedTuple, Protocol, Self

from imagen.errors import ConfigError, ImagenError
from preencode.dispatch import Outcome
from runtime import log


class Worker(NamedTuple):
    """Which process of which machine did the work: process ids alone are alike on all machines."""

    host: str
    pid: int

    @classmethod
    def here(cls) -> Self:
        """Return the process that asks."""
        return cls(socket.gethostname(), os.getpid())


NOBODY = Worker("", 0)
"""Of work that nobody finished."""


class Tally(Protocol):
    """The part of a result that every kind of run has."""

    lost_actors: int
    retried: int
    failed: dict[str, ImagenError]


def note(result: Tally, outcome: Outcome[Any], events: log.JsonLog) -> tuple[bool, Worker, Any]:
    """Note a lost actor, another try or a failure; return (is it the end of its item, who
    did it, report).

    Actors answer with who they are and a report, or the error that names what is wrong. There
    is no report of what was lost or failed. Raises ConfigError of an actor at once: every shard
    would have it.
    """
    tar = str(outcome.item)
    if outcome.lost is not None:
        result.lost_actors += 1
        events.write(event="actor_lost", tar=tar, reason=outcome.lost)
        return False, NOBODY, None
    if outcome.failed is not None:
        result.retried += 1
        events.write(event="retry", tar=tar, reason=outcome.failed.message)
        return False, NOBODY, None
    worker, value = outcome.value if outcome.error is None else (NOBODY, outcome.error)
    if isinstance(value, ConfigError):
        raise value
    if isinstance(value, ImagenError):
        result.failed[tar] = value
        events.write(event="failed", tar=tar, reason=value.message)
        return True, worker, None
    return True, worker, value
