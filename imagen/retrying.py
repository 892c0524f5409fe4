"""Try again what a store refuses for a while: with growing pauses, until a deadline.

A local disk gets one try. Of a store, what is missing or forbidden is final at once; what the
network lost, what the store was too busy for (429, 5xx) and what nobody knows is tried again.

Every function of imagen/storage.py insists in this way by itself. Who wants another deadline, or
one for several of them together, wraps them: the outermost deadline counts, and tries do not
multiply.
"""

import contextvars
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from imagen.errors import ImagenError, StorageError
from imagen.redaction import redacted
from imagen.store import is_local

T = TypeVar("T")
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_BUSY = (408, 425, 429)
"""HTTP codes from 400 to 499 that mean "later", not "no"."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to insist on one file."""

    deadline_s: float = 600.0
    """From the first try to the last; a try that hangs is left behind then."""
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


PATIENT = Patience()
NOTICE_S = 5.0
"""A pause of this length is told, so that nobody takes it for a hang."""
LOGGER = logging.getLogger("imagen.storage")


class GivenUpError(StorageError):
    """What was tried again until the deadline."""


@dataclass(slots=True)
class _Effort:
    """A deadline that has begun, and what came of the tries below it."""

    patience: Patience
    began: float
    tries: int = 0
    last: Exception | None = None

    def spent(self) -> float:
        return self.patience.clock() - self.began

    def left(self) -> float:
        return max(0.0, self.patience.deadline_s - self.spent())


_EFFORT: contextvars.ContextVar[_Effort | None] = contextvars.ContextVar("effort", default=None)


def patiently(
    action: Callable[[], T], path: str, patience: Patience = PATIENT, *, alone: bool = False
) -> T:
    """Return what `action`, which reads or writes `path`, returns in the end.

    Inside another `patiently` its deadline counts, unless `alone`.
    Raises StorageError: what failed, where, how often and for how long.
    """
    if is_local(path):
        return action()
    outer = None if alone else _EFFORT.get()
    effort = outer or _Effort(patience, patience.clock())
    token = _EFFORT.set(effort)
    try:
        return _insist(action, path, effort)
    finally:
        _EFFORT.reset(token)


def _insist(action: Callable[[], T], path: str, effort: _Effort) -> T:
    patience, pause = effort.patience, effort.patience.first_pause_s
    while True:
        try:
            return within(action, effort.left(), path)
        except Exception as err:
            if isinstance(err, GivenUpError) or (isinstance(err, ImagenError) and is_final(err)):
                raise
            effort.tries += 1
            wait = pause * random.uniform(0.5, 1.0)  # many ranks were refused at once
            if is_final(err) or wait >= effort.left():
                # one that hangs at the deadline tells less than one that failed before
                why = effort.last if effort.last and isinstance(err, OverdueError) else err
                raise _given_up(why, path, effort) from why
            effort.last = err
            if wait >= NOTICE_S:
                LOGGER.warning("%s; again in %.0f s", _told(err, path), wait)
        patience.pause(wait)
        pause = min(2 * pause, patience.longest_pause_s)


def is_final(err: BaseException) -> bool:
    """Tell whether trying again would not help."""
    if isinstance(err, _FINAL):
        return True
    if type(err).__module__ == "aiohttp.http_exceptions":
        return False  # an answer that cannot be read, torn as a rule; its "code" is not GCS's
    code = next((c for c in map(_code, ("status", "code"), (err, err)) if c is not None), None)
    if code is not None:
        return 400 <= code < 500 and code not in _BUSY
    if err.__cause__ is not None:
        return is_final(err.__cause__)
    return isinstance(err, ImagenError)  # our own judgement, of no failing call


def _code(name: str, err: BaseException) -> int | None:
    value = getattr(err, name, None)
    return value if isinstance(value, int) else None


def _given_up(err: Exception, path: str, effort: _Effort) -> StorageError:
    hint = err.hint if isinstance(err, ImagenError) else None
    often = "once" if effort.tries == 1 else f"{effort.tries} times in {effort.spent():.0f} s"
    return GivenUpError(f"{_told(err, path)} (tried {often})", hint)


def _told(err: Exception, path: str) -> str:
    if isinstance(err, ImagenError):
        return err.message
    return redacted(f"`{path}`: {type(err).__name__}: {err}")


class OverdueError(Exception):
    """A try that still hangs at the deadline."""


def within(action: Callable[[], T], seconds: float, path: str) -> T:
    """Return what `action` returns; leave it behind when it takes longer. Raises OverdueError."""
    box: list[tuple[bool, Any]] = []
    context = contextvars.copy_context()

    def call() -> None:
        try:
            box.append((True, context.run(action)))
        except BaseException as err:
            box.append((False, err))

    thread = threading.Thread(target=call, name=f"patiently {path}", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise OverdueError(f"no answer in {seconds:.0f} s")
    succeeded, value = box[0]
    if not succeeded:
        raise value
    return value
