"""The proof of which samples made up which global batch: the keys of each step, as it was taken.

```
<out>/<member>/audit/<launch>-<start>-<rank>.jsonl    {"step": 17, "keys": [...]} for each step
```
A step that was lost with its workers is taken again by a later start; what counts is the last.
"""

from collections import defaultdict
from collections.abc import Sequence

from imagen import storage
from runtime import log
from runtime.log import JsonLog
from train.data import Microbatch
from train.job import Job
from train.loop import World

FOLDER = "audit"


class Audit:
    """Writes the keys of one rank's share of each step, when the config asks for it."""

    def __init__(self, job: Job, number: int, world: World) -> None:
        self._log = None
        if job.train.audit:
            name = f"{job.launch}-{number:05d}-{world.rank:05d}.jsonl"
            self._log = JsonLog(storage.join(job.run_dir, FOLDER, name))

    def note(self, step: int, parts: Sequence[Microbatch]) -> None:
        """Note a step that was taken."""
        if self._log is not None:
            self._log.write(step=step, keys=[key for part in parts for key in part.keys])

    def flush(self) -> None:
        """Publish what was noted, now. Raises StorageError."""
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        """Publish what was noted."""
        if self._log is not None:
            self._log.close()


def committed(run_dir: str) -> dict[int, list[str]]:
    """Return the keys of each step as the last start took it, those of rank 0 first."""
    starts: dict[str, list[str]] = defaultdict(list)
    folder = storage.join(run_dir, FOLDER)
    for name in storage.listdir(folder):
        starts[name.rpartition("-")[0]].append(name)
    steps: dict[int, list[str]] = {}
    for start in sorted(starts):
        taken: dict[int, list[str]] = defaultdict(list)
        for name in sorted(starts[start]):
            for event in log.read(storage.join(folder, name)):
                taken[event["step"]] += event["keys"]
        steps |= taken
    return dict(sorted(steps.items()))
