"""Ray nodes on this machine that can be killed, frozen and drained; for benchmarks and tests."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
"""What infra/README.md advises for head nodes: a vanished machine is missed within seconds."""


class LocalNodes:
    """A head without CPUs, and as many nodes of one CPU as are added; made on the main thread."""

    def __init__(self, health: Mapping[str, int]) -> None:
        import ray.cluster_utils

        os.makedirs("/tmp/ray", exist_ok=True)  # where Ray notes the newest cluster
        self.folder = tempfile.mkdtemp(prefix="imagen-nodes-", dir="/tmp")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "gcs_server_port": port,
            "temp_dir": self.folder,
            "_system_config": dict(health),
        }
        self.cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self.cluster.address)
        self.nodes: list[Any] = []

    def add(self) -> Any:
        """Start a node, and return before it is ready."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, wait=False))
        return self.nodes[-1]

    def send(self, node: Any, number: int) -> None:
        """Send a signal to all processes of a node, as when its power goes."""
        for infos in node.all_processes.values():
            for pid in [pid for info in infos for pid in family(info.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def drain(self, node: Any, seconds: float) -> None:
        """Announce that a node goes: what clouds do, and `ray start --block` at SIGTERM."""
        import ray._raylet
        from ray.core.generated import autoscaler_pb2

        insides: Any = ray._raylet
        reasons: Any = autoscaler_pb2
        why = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gone = int((time.time() + seconds) * 1000)
        client = insides.GcsClient(address=self.address)
        accepted, reason = client.drain_node(node.node_id, why, "spot", gone)
        assert accepted, reason

    def close(self) -> None:
        """End what was started here, also what is frozen."""
        import ray

        for node in self.nodes:
            self.send(node, signal.SIGKILL)
        ray.shutdown()  # a cluster does not end below those who use it
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def family(pid: int) -> list[int]:
    """Return a process and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found
