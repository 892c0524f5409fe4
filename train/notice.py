"""A notice that this group of workers ends soon: save a checkpoint now, on all ranks, and wait.

Ray's side (train/ray_internals.py) calls `ask` in each training process: before machines are added,
when one is about to be taken away, and when a person stops the run. The training thread asks
`agreed` after each step; when all ranks agree they save, and are parked in `after_save` until Ray
takes them down. So no step that was taken is lost, and none is taken in vain.
"""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from train.loop import World

PARK_S = 120.0
"""How long a rank waits for its end by default; then training goes on."""
TIMEOUT_S = 300.0
"""How long the ranks wait for each other's answer before a peer counts as hung."""
REASONS = ("", "resize", "preemption", "stop")
"""What can be asked for, by the number that the ranks send each other."""


@dataclass(slots=True)
class _Notice:
    """What this process was asked for."""

    reason: str = ""
    park_s: float = 0.0
    parked: bool = False
    stepping_since: float | None = None


class _Votes:
    """The answers of all ranks to "was anybody asked?", a step late and so for free.

    On CPU, in a group of their own: they wait neither for a GPU nor for a checkpoint on its way.
    """

    def __init__(self) -> None:
        self.among = dist.group.WORLD
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S))
        self.sent = torch.zeros(2, dtype=torch.float64)
        self.work: dist.Work | None = None

    def count(self, reason: int, park_s: float) -> tuple[int, float]:
        """Return the answer of the last call, the same on all ranks; send this one for the next."""
        if self.work is not None:
            self.work.wait()
            self.work, (found, longest) = None, self.sent.tolist()
            if found:
                return int(found), longest
        self.sent[0], self.sent[1] = reason, park_s
        self.work = dist.all_reduce(self.sent, dist.ReduceOp.MAX, self.group, async_op=True)
        return 0, 0.0


_notice = _Notice()
_votes: _Votes | None = None


def ask(reason: str, park_s: float = PARK_S) -> None:
    """Ask for a checkpoint and up to `park_s` of waiting; any thread. `reason`: see `REASONS`."""
    assert reason in REASONS[1:], "a reason has a number"
    if not _notice.parked:  # else it has been done just now
        _notice.park_s, _notice.reason = max(0.0, park_s), reason


def park_s(gone: float) -> float:
    """Return how long to wait on a machine that is gone at `gone`; 0: nobody knows when."""
    return max(0.0, gone - time.time()) + PARK_S


def agreed(world: World) -> str | None:
    """Return why all ranks save now, or None; every rank calls it after the same steps."""
    if _notice.stepping_since is None:
        _notice.stepping_since = time.monotonic()
    if world.size == 1:
        return _notice.reason or None
    global _votes
    if _votes is None or _votes.among is not dist.group.WORLD:
        _votes = _Votes()
    found, park_s = _votes.count(REASONS.index(_notice.reason), _notice.park_s)
    if found:
        _notice.park_s = park_s
    return REASONS[found] or None


def after_save(reason: str) -> None:
    """Wait to be taken down, now that the checkpoint is complete; return when nobody comes."""
    del reason
    _notice.parked = True
    threading.Event().wait(_notice.park_s)
    _notice.reason, _notice.park_s, _notice.parked = "", 0.0, False


def parked() -> bool:
    """Tell whether this process has saved what it was asked to save and waits for its end."""
    return _notice.parked


def stepping_s() -> float | None:
    """Return how long ago this process took its first step, None before."""
    since = _notice.stepping_since
    return None if since is None else time.monotonic() - since
