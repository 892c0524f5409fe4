"""Machines as a run sees them: which of them have room for workers, and why others have none."""

import socket
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

ANSWER_S = 1.0
"""A node that does not take a connection for this long is left out: it is gone, or soon is."""
WAITING = "waiting"
"""File in Ray's folder of the run that says what it waits for, empty while it does not."""
STOP, STOPPED = "stop", "stopped"
"""Files there: the driver asks for a last checkpoint; it is saved, or there is nothing to save."""
VALIDATION = "imagen_validation"
"""Resource of nodes on which snapshots are validated; no training takes their GPUs."""

Wants = Mapping[str, float]
"""Amounts of resources by name."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a cluster."""

    id: str
    address: str
    total: Wants
    free: Wants
    trouble: str = ""
    """Why no worker is put there, for example `is being drained`; empty: nothing is wrong."""

    def room(self, wants: Wants) -> int:
        """Return how many workers fit there now."""
        return 0 if self.trouble else fits(self.free, wants)

    def size(self, wants: Wants) -> int:
        """Return how many workers would fit there, were it idle."""
        return 0 if self.trouble else fits(self.total, wants)


def fits(there: Wants, wants: Wants) -> int:
    """Return how many workers fit into what is there."""
    return min(int((there.get(name, 0.0) + 1e-6) // amount) for name, amount in wants.items())


def survey(
    nodes: Sequence[Mapping[str, Any]],
    free: Mapping[str, Wants],
    draining: Collection[str],
    own: Mapping[str, Wants],
) -> list[Node]:
    """Return the nodes of `ray.nodes()` that are alive; what a run has there counts as free.

    Each is asked for a connection: Ray takes a dead node for alive for up to a minute.
    """
    alive = [node for node in nodes if node["Alive"]]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(_answers, alive))
    found = []
    for node, answer in zip(alive, answers, strict=True):
        key = node["NodeID"]
        trouble = "" if answer else "does not answer"
        if key in draining:
            trouble = "is being drained"
        elif VALIDATION in node["Resources"]:
            trouble = "is kept for validation"
        room = Counter(free.get(key, {})) + Counter(own.get(key, {}))
        found.append(Node(key, node["NodeManagerAddress"], node["Resources"], room, trouble))
    return found


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        where = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(where, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def told(nodes: Sequence[Node], wants: Wants) -> str:
    """Return how many workers fit now, and what is in the way of more."""
    reasons = [f"{node.address} {node.trouble}" for node in nodes if node.trouble]
    for node in nodes:
        if node.room(wants) < node.size(wants):
            used = {name: node.total[name] - node.free.get(name, 0.0) for name in wants}
            parts = [f"{n:g} of {node.total[name]:g} {name}" for name, n in used.items() if n > 0]
            reasons.append(f"others use {', '.join(parts)} of {node.address}")
    room = sum(node.room(wants) for node in nodes)
    return "; ".join([f"there is room for {room}", *reasons])
