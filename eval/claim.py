"""Who works on an evaluation: one evaluator at a time, wherever the files are.

On a local disk the kernel keeps the claim and drops it with the process. On a store it is a file
that its owner writes again and again: one that has not changed for `LEASE_S` has lost its owner.
Nobody's clock is compared with another's, and one that takes over replaces the very claim that it
has watched. An owner that was only slow then does what another does, too: their samples are the
same bytes under the same names.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from imagen import storage
from imagen.errors import ImagenError, StorageError
from runtime.state import is_locked, lock

NAME = "claim.json"
LEASE_S = 90.0
"""A claim that was not renewed for so long is nobody's."""
BEAT_S = 20.0
"""How often an owner renews its claim."""
LOOK_S = 3.0
"""How often the claim of another is looked at."""


class Taken(StorageError):
    """Somebody else works on it."""


@contextlib.contextmanager
def claim(folder: str, lease_s: float = LEASE_S) -> Iterator[Callable[[], None]]:
    """Hold an evaluation's folder. Raises Taken when another evaluator does.

    Yields a function that raises Taken when another has taken over since, to be called before
    results are published. It may take `lease_s` to find out whether a holder is still alive.
    """
    if storage.is_local(folder):
        with _locked(folder):
            yield lambda: None
        return
    path, owner = storage.join(folder, NAME), _owner()
    _take(path, owner, lease_s)
    over = threading.Event()
    beat = threading.Thread(target=_renew, args=(path, owner, over), daemon=True)
    beat.start()

    def check() -> None:
        if _holder(path) != owner:
            raise _taken(path)

    try:
        yield check
    finally:
        over.set()
        beat.join()
        with contextlib.suppress(ImagenError):
            if _holder(path) == owner:
                storage.delete(path)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(folder))
        except StorageError as err:
            raise Taken(err.message, err.hint) from err
        yield


def held_by(folder: str) -> str | None:
    """Return who works on an evaluation, as a person reads it; None: nobody, as far as one sees."""
    if storage.is_local(folder):
        pid = is_locked(folder)
        return None if pid is None else f"process {pid}"
    return _holder(storage.join(folder, NAME))


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"


def _holder(path: str) -> str | None:
    """Return who holds a claim, None: nobody. Raises StorageError when that is not to be had."""
    data = storage.get_if_there(path)
    try:
        return None if data is None else str(json.loads(data)["owner"])
    except (ValueError, KeyError):
        return "somebody whose claim is damaged"


def _take(path: str, owner: str, lease_s: float) -> None:
    if storage.put(path, _text(owner, 0), if_absent=True):
        return
    version = _dead(path, lease_s)
    if not storage.replace(path, _text(owner, 0), version):
        raise _taken(path)


def _taken(path: str) -> Taken:
    return Taken(
        f"`{path.rpartition('/')[0]}` is evaluated by {_holder(path) or 'somebody'}",
        f"wait for it; if nobody is at work there, run again in {LEASE_S:g} s",
    )


def _dead(path: str, lease_s: float) -> str | None:
    """Watch a claim for a lease; return its version, None if it went. Raises Taken if it lives."""
    before, deadline = storage.version_if_there(path), time.monotonic() + lease_s
    while before is not None and time.monotonic() < deadline:
        time.sleep(min(LOOK_S, lease_s / 4))
        now = storage.version_if_there(path)
        if now is None:
            return None
        if now != before:
            raise _taken(path)
    return before


def _renew(path: str, owner: str, over: threading.Event) -> None:
    """Change the claim again and again, until it is given up or another has taken it over."""
    beats, version = 0, None
    while not over.wait(BEAT_S):
        with contextlib.suppress(ImagenError):  # a store that does not answer: the next beat may
            if _holder(path) != owner:
                return
            beats, version = beats + 1, storage.version_if_there(path)
            storage.replace(path, _text(owner, beats), version)


def _text(owner: str, beats: int) -> bytes:
    return json.dumps({"owner": owner, "beats": beats}).encode() + b"\n"
