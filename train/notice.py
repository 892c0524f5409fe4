"""A notice that this attempt ends soon: save a checkpoint now, on all ranks, then leave.

Ray's side (train/elastic.py) calls `ask` in any thread of a training process: before machines are
added, or when one is about to be taken away. The loop asks `agreed` after each step.
"""

from train.loop import World

_asked: list[str] = []


def ask(reason: str) -> None:
    """Ask for a checkpoint; `reason` is told in the log: "resize" or "preemption"."""
    _asked.append(reason)


def agreed(world: World) -> str | None:
    """Return why all ranks save now, or None; every rank calls it after the same step."""
    reasons = [reason for reason in world.gather(_asked[0] if _asked else None) if reason]
    return reasons[0] if reasons else None


def after_save(reason: str) -> None:
    """Do what follows once the checkpoint is complete."""
    del reason
    _asked.clear()
