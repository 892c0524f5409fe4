"""Evaluate whatever has no result yet: once (`--all`), or as snapshots are published (`--watch`).

Which line-ups there are follows from the snapshots alone, so it does not matter when, how often or
by how many this is run. A failure is noted, told, and tried again by the next round; what has
failed `TRIES` times waits for a person.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from eval import lineups, report, stage
from eval.claim import Taken
from eval.config import EvalConfig
from eval.inputs import gather
from eval.lineups import Lineup
from imagen import storage
from imagen.errors import ConfigError, ImagenError, StorageError
from imagen.project import absolute
from runtime.cli import user_error

TRIES = 3
POLL_S = 10.0


@dataclass(slots=True)
class Round:
    """What one look at all line-ups came to, by the names of their evaluations."""

    done: list[str] = field(default_factory=list)
    """By this process."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why; those that were given up are among them."""
    given_up: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    """Others are at work on them."""


def missing(config: EvalConfig) -> list[Lineup]:
    """Return the line-ups without a result, the newest first; those that cannot be read, too."""
    found = reversed(lineups.lineups(config))
    return [lineup for lineup in found if not stage.is_done(config, lineup)]


def once(config: EvalConfig, address: str | None, tell: Callable[[str], None]) -> Round:
    """Evaluate every line-up that has no result, and assemble the newest cascade that has one.

    Raises ConfigError at once: it would be the same for all.
    """
    config, came_to = absolute(config), Round()
    for lineup in missing(config):
        _try(config, lineup, address, came_to, tell)  # each starts a local Ray where none is given
    if set(came_to.failed) - set(came_to.given_up):
        report.write(config)  # with what has just failed
    _assemble(config)
    return came_to


def _assemble(config: EvalConfig) -> None:
    """Assemble the newest cascade, if it is evaluated; else a later round does both."""
    if not all(lineups.snapshots(config, member) for member in config.members):
        return
    newest = lineups.newest(config)
    if stage.is_done(config, newest):
        stage.assemble(config, gather(config, newest))


def watch(
    config: EvalConfig,
    address: str | None,
    tell: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> Round:
    """Evaluate line-ups as their snapshots are published, until all trainings have finished.

    Returns the last round. A store that does not answer for a while is waited for.
    """
    config, told = absolute(config), set[str]()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    while True:
        over = lineups.finished(config)  # before the look, which then misses nothing
        try:
            came_to = once(config, address, tell_once)
        except StorageError as err:
            tell(f"waits for the store, and tries again: {err.message}")
            pause(POLL_S)
            continue
        if over and not came_to.taken and set(came_to.failed) <= set(came_to.given_up):
            return came_to
        tell_once("waits for new snapshots; stop it with Ctrl-C, nothing is lost")
        pause(POLL_S)


def _try(
    config: EvalConfig,
    lineup: Lineup,
    address: str | None,
    came_to: Round,
    tell: Callable[[str], None],
) -> None:
    try:
        name = storage.name(stage.folder_of(config, gather(config, lineup)))
    except ImagenError as err:
        if not _gone(lineup):  # its members do not fit each other: no try would change that
            name = f"{lineup.images:,} images"
            came_to.failed[name] = err.message
            came_to.given_up.append(name)
            tell(f"{name}: {err.message}")
        return
    tries = failures(config, name)
    if tries >= TRIES:
        came_to.given_up.append(name)
        came_to.failed[name] = (
            f"{tries} tries failed (delete `{stage.failure(config, name)}` for another)"
        )
        return
    tell(f"{name}: {' and '.join(lineup.snapshots)} at {lineup.images:,} images")
    try:
        fresh = stage.work(config, address, lineup)
        state = stage.state(config, lineup)
    except Taken as err:
        came_to.taken.append(name)
        tell(f"{name}: {err.message}")
    except ConfigError:
        raise
    except Exception as err:
        if _gone(lineup):
            tell(f"{name}: a snapshot of it was deleted meanwhile; it is left out")
            return
        came_to.failed[name] = _note(config, name, tries + 1, err)
        tell(f"{name} failed, try {tries + 1} of {TRIES}: {came_to.failed[name]}")
    else:
        if fresh:
            came_to.done.append(name)
        tell(f"{name}: {state.detail if fresh else 'others have evaluated it meanwhile'}")


def _gone(lineup: Lineup) -> bool:
    """Tell whether training has deleted a snapshot of a line-up: it keeps only the newest."""
    paths = [storage.join(folder, "snapshot.json") for folder in lineup.snapshots.values()]
    return not all(storage.exists(path) for path in paths)


def failures(config: EvalConfig, name: str) -> int:
    """Return how often an evaluation has failed."""
    path = stage.failure(config, name)
    with suppress(ValueError, KeyError):  # damaged: it is counted anew
        return int(json.loads(storage.get(path))["tries"]) if storage.exists(path) else 0
    return 0


def _note(config: EvalConfig, name: str, tries: int, err: Exception) -> str:
    """Note a failure; return it as a person reads it, a bug with its traceback."""
    known = user_error(err)
    reason = "".join(traceback.format_exception(err)).strip() if known is None else known.message
    note = {"tries": tries, "reason": reason, "time": round(time.time(), 3)}
    with suppress(StorageError):  # a store that is gone: it is told, at least
        storage.put(stage.failure(config, name), json.dumps(note, indent=1).encode() + b"\n")
    return reason


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"eval: {text}", file=sys.stderr, flush=True)
