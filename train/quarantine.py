"""The samples that training met and could not use: each told once in `<run>/quarantine.jsonl`."""

from collections import Counter
from dataclasses import asdict

from imagen import storage
from imagen.data.samples import Bad
from imagen.retrying import PATIENT, Patience
from runtime import log
from runtime.log import JsonLog

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """Writes bad samples down, each key once in the life of a run. Only rank 0 has one."""

    def __init__(self, run_dir: str) -> None:
        self.path = storage.join(run_dir, QUARANTINE)
        self._reasons = {event["key"]: event["reason"] for event in log.read(self.path)}
        self._log: JsonLog | None = None

    def note(self, bad: Bad) -> bool:
        """Write a sample down; False when it is known already, also from before a restart."""
        if bad.key in self._reasons:
            return False
        self._reasons[bad.key] = bad.reason
        if self._log is None:
            self._log = JsonLog(self.path)
        self._log.write(**asdict(bad))
        return True

    def counts(self) -> dict[str, int]:
        """Return how many samples are bad, by reason."""
        return dict(sorted(Counter(self._reasons.values()).items()))

    def flush(self, patience: Patience = PATIENT) -> None:
        """Publish what was written down, now. Raises StorageError."""
        if self._log is not None:
            self._log.flush(patience)

    def close(self) -> None:
        """Publish what was written down."""
        if self._log is not None:
            self._log.close()
