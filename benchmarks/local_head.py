"""A Ray head that takes jobs over HTTP, and its nodes, on this machine; for benchmarks and tests.

What `ray start` starts on machines of their own, in processes of their own: the head can be killed
and started again. All ports are its own, so several clusters can share a machine.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.local_nodes import HEALTH, family

PATIENCE_S = 240.0
FREE = range(20_000, 32_000)
"""Ports outside what Ray gives to workers (from 10,002) and the kernel to clients (from 32,768)."""
PER_NODE = (
    *("node-manager-port", "object-manager-port", "runtime-env-agent-port"),
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"),
)
ON_HEAD = ("port", "dashboard-port", "ray-client-server-port")
BIN = os.path.dirname(sys.executable)


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Return a free port for each name."""
    found: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # all at once, so that no two are the same
        for port in random.SystemRandom().sample(FREE, len(FREE)):
            if len(found) == len(names):
                break
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found[names[len(found)]] = port
    return found


class LocalHead:
    """A head without CPUs, and as many nodes as are added; who comes needs its token."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.folder = tempfile.mkdtemp(prefix="imagen-head-", dir="/tmp")  # short, for its sockets
        self.ports = free_ports(ON_HEAD)
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        """Environment of those who are let in."""
        self.environment = dict(environment or {})
        self.processes: list[subprocess.Popen] = []

    @property
    def url(self) -> str:
        """Where jobs are taken."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    @property
    def address(self) -> str:
        """Where nodes and drivers join."""
        return f"127.0.0.1:{self.ports['port']}"

    def start(self) -> None:
        """Start the head, also again after `kill`; return when it answers."""
        own = [f"--{name}={port}" for name, port in self.ports.items()]
        words = ["--head", *own, "--dashboard-host=127.0.0.1", "--num-cpus=0"]
        self._insist(words, lambda: self._alive() > 0)

    def add(self, cpus: int = 1) -> None:
        """Start a node; return when it is there."""
        nodes = self._alive() + 1
        words = [f"--address={self.address}", f"--num-cpus={cpus}"]
        self._insist(words, lambda: self._alive() >= nodes)

    def _insist(self, words: list[str], there: Callable[[], bool]) -> None:
        """Run `ray start`, again when it ends: a busy machine is too slow for its 30 s."""
        end = time.monotonic() + PATIENCE_S
        process = self._ray(*words)
        while not there():
            assert time.monotonic() < end, f"{words} did not start\n{self.output()}"
            if process.poll() is not None:
                self._end(process)
                self.processes.remove(process)
                process = self._ray(*words)
            time.sleep(0.2)

    def _alive(self) -> int:
        """Return how many nodes there are, the head included."""
        body = json.loads(self._get("/api/v0/nodes") or b"{}")
        found = body.get("data", {}).get("result", {}).get("result", [])
        return sum(node["state"] == "ALIVE" for node in found)

    def _ray(self, *words: str) -> subprocess.Popen:
        ports = [f"--{name}={port}" for name, port in free_ports(PER_NODE).items()]
        # nodes that share a folder unpack the code of jobs over each other
        own = tempfile.mkdtemp(prefix="n", dir=self.folder)
        # other ports of workers than the usual ones, for there may be other clusters
        more = [
            f"--temp-dir={own}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--object-store-memory=100000000",
        ]
        health = {f"RAY_{name}": str(value) for name, value in HEALTH.items()}
        path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}  # `python` of jobs is this one
        unset = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONPATH")
        base = {name: value for name, value in os.environ.items() if name not in unset}
        with open(os.path.join(self.folder, "output"), "ab") as output:
            node = subprocess.Popen(
                [f"{BIN}/ray", "start", "--block", *words, *ports, *more],
                cwd=self.folder,
                env=base | health | path | self.token | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self.processes.append(node)
        return node

    def _get(self, path: str) -> bytes | None:
        """Return what the dashboard answers, None while it does not."""
        headers = {"Authorization": f"Bearer {self.token['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except OSError:
            return None

    def output(self) -> str:
        """Return what `ray start` told, of the head and of the nodes."""
        return Path(self.folder, "output").read_text(errors="replace")

    def kill(self) -> None:
        """Kill the head, its nodes and all jobs, as when the power goes."""
        for process in self.processes:
            self._end(process)
        self.processes.clear()

    def _end(self, process: subprocess.Popen) -> None:
        for pid in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """End everything that was started here."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
