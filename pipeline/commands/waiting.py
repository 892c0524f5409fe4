"""Waiting for jobs, as several commands do."""

import time
from typing import TYPE_CHECKING

from runtime.cli import say

if TYPE_CHECKING:
    from pipeline.following import Follower

PAUSE_S = 0.2


def wait(follower: "Follower") -> int:
    """Wait until all jobs have ended; return the exit status that a command has then.

    2 when a person can mend what the jobs failed of, 1 when one failed of something else.
    """
    statuses: set[int] = set()
    try:
        while follower.running:
            for stage, job in follower.ended().items():
                say(f"{stage}: {'lost with its cluster' if job is None else job.status}")
                if job is None or job.status != "SUCCEEDED":
                    statuses.add(job.exit_status or 1 if job else 1)
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        say(f"the jobs go on: {', '.join(follower.running.values())}")
        raise
    return 0 if not statuses else 2 if statuses == {2} else 1
