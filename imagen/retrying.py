"""Try again what a store refuses for a while: with growing pauses, until a deadline.

A local disk gets one try. Of a store, what is missing or forbidden is final at once; what the
network lost, what the store was too busy for (429, 5xx) and what nobody knows is tried again.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from imagen.errors import ImagenError, StorageError
from imagen.store import is_local

T = TypeVar("T")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
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


def patiently(action: Callable[[], T], path: str, patience: Patience = PATIENT) -> T:
    """Return what `action`, which reads or writes `path`, returns in the end.

    Raises StorageError: what failed, where, how often and for how long.
    """
    if is_local(path):
        return action()
    began, tries, pause = patience.clock(), 0, patience.first_pause_s
    while True:
        tries += 1
        left = patience.deadline_s - (patience.clock() - began)
        try:
            return _within(action, left, path)
        except Exception as err:
            spent = patience.clock() - began
            wait = pause * random.uniform(0.5, 1.0)  # many ranks were refused at once
            if is_final(err) or spent + wait >= patience.deadline_s:
                raise _given_up(err, path, tries, spent) from err
        patience.pause(wait)
        pause = min(2 * pause, patience.longest_pause_s)


def is_final(err: BaseException) -> bool:
    """Tell whether trying again would not help."""
    if isinstance(err, _FINAL):
        return True
    code = next((c for c in map(_code, ("status", "code"), (err, err)) if c is not None), None)
    if code is not None:
        return 400 <= code < 500 and code not in _BUSY
    if err.__cause__ is not None:
        return is_final(err.__cause__)
    return isinstance(err, ImagenError)  # our own judgement, of no failing call


def _code(name: str, err: BaseException) -> int | None:
    value = getattr(err, name, None)
    return value if isinstance(value, int) else None


def _given_up(err: Exception, path: str, tries: int, spent_s: float) -> StorageError:
    what = err.message if isinstance(err, ImagenError) else f"`{path}`: {type(err).__name__}: {err}"
    hint = err.hint if isinstance(err, ImagenError) else None
    times = "once" if tries == 1 else f"{tries} times in {spent_s:.0f} s"
    return StorageError(f"{what} (tried {times})", hint)


class _Overdue(Exception):
    """A try that still hangs at the deadline."""


def _within(action: Callable[[], T], seconds: float, path: str) -> T:
    """Return what `action` returns; leave it behind when it takes longer."""
    box: list[tuple[bool, Any]] = []

    def call() -> None:
        try:
            box.append((True, action()))
        except BaseException as err:
            box.append((False, err))

    thread = threading.Thread(target=call, name=f"patiently {path}", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise _Overdue(f"no answer in {seconds:.0f} s")
    succeeded, value = box[0]
    if not succeeded:
        raise value
    return value
