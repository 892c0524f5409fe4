"""What a step costs: images a second, and the share of the time that is spent waiting for data."""

import contextlib
import time
from collections.abc import Iterator


class Meter:
    """Counts since the last look, on one rank."""

    def __init__(self, images_seen: int) -> None:
        self.images_seen, self.time, self.waited = images_seen, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began

    def look(self, images_seen: int) -> dict[str, float]:
        """Return what a line of the log says of speed, since the last look."""
        now = time.perf_counter()
        passed = max(now - self.time, 1e-9)
        fields = {
            "images_per_s": round((images_seen - self.images_seen) / passed, 1),
            "data_wait": round(self.waited / passed, 4),
        }
        self.images_seen, self.time, self.waited = images_seen, now, 0.0
        return fields
