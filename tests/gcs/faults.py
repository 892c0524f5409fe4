"""What goes wrong on purpose: which requests fail and how, seeded and counted."""

import random
import re
import threading
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "status": "answers with `status`, and nothing is done",
    "lost": "does what is asked; the connection ends before the answer",
    "truncate": "does what is asked; the connection ends in the middle of the answer's body",
    "slow": "the answer's body comes in pieces, for `seconds` in all",
    "reset": "the connection is reset; nothing is done",
    "hang": "nothing comes for `seconds`, then the connection ends; nothing is done",
    "latency": "is answered `seconds` later; goes together with one of the others",
    "any": "one of `status` (429, 500, 503), `lost`, `truncate`, `reset`, by chance",
}
_ANY = ("status", "lost", "truncate", "reset")


@dataclass(kw_only=True)
class Rule:
    """Requests that match `method` and `path` go wrong: all, those of `nth`, or some by chance."""

    kind: str
    method: str = ""
    """Regular expression; the whole method."""
    path: str = ""
    """Regular expression; searched in path and query, not percent-encoded."""
    nth: list[int] = field(default_factory=list)
    """Of the matching requests, counted from 1; empty: all."""
    probability: float = 1.0
    times: int = 10**9
    """At most so often."""
    status: int = 503
    seconds: float = 0.0
    matched: int = 0
    injected: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault {self.kind!r}; there are {', '.join(KINDS)}")

    def applies(self, method: str, path: str, chance: random.Random) -> bool:
        if self.method and not re.fullmatch(self.method, method):
            return False
        if not re.search(self.path, path):
            return False
        self.matched += 1
        if self.injected >= self.times or (self.nth and self.matched not in self.nth):
            return False
        if self.probability < 1 and chance.random() >= self.probability:
            return False
        self.injected += 1
        return True


@dataclass(frozen=True)
class Fault:
    """What happens to one request."""

    kind: str = ""
    status: int = 503
    seconds: float = 0.0
    latency: float = 0.0


class Plan:
    """The rules, in order: the first that applies counts; latencies add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.set([], 0)

    def set(self, rules: list[dict[str, Any]], seed: int) -> None:
        """Begin anew with these rules."""
        made = [Rule(**rule) for rule in rules]
        with self._lock:
            self.rules, self._chance = made, random.Random(seed)
            self.requests, self.kinds = 0, dict[str, int]()

    def next(self, method: str, path: str) -> Fault:
        """Return what happens to a request."""
        with self._lock:
            self.requests += 1
            latency, fault = 0.0, None
            for rule in self.rules:
                if rule.kind != "latency" and fault is not None:
                    continue
                if rule.applies(method, path, self._chance):
                    if rule.kind == "latency":
                        latency += rule.seconds
                    else:
                        fault = self._fault(rule)
            fault = fault or Fault()
            if fault.kind:
                self.kinds[fault.kind] = self.kinds.get(fault.kind, 0) + 1
            return Fault(fault.kind, fault.status, fault.seconds, latency)

    def _fault(self, rule: Rule) -> Fault:
        if rule.kind != "any":
            return Fault(rule.kind, rule.status, rule.seconds)
        return Fault(self._chance.choice(_ANY), self._chance.choice((429, 500, 503)), rule.seconds)

    def counts(self) -> dict[str, Any]:
        """Return how many requests came, and what was done to them."""
        with self._lock:
            rules = [{"matched": r.matched, "injected": r.injected} for r in self.rules]
            return {"requests": self.requests, "kinds": dict(self.kinds), "rules": rules}
