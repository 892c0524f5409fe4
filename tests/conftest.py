"""Fixtures of all tests."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
GCS_SERVER = Path(__file__).parent / "gcs" / "server.py"


@pytest.fixture
def golden_text():
    """Compare text with a file of tests/golden; IMAGEN_GOLDEN=write writes it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("IMAGEN_GOLDEN") == "write":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text, f"{path} differs; IMAGEN_GOLDEN=write if on purpose"

    return check


class GcsServer:
    """A GCS server in a process of its own, see tests/gcs/server.py."""

    def __init__(self) -> None:
        words = [sys.executable, str(GCS_SERVER)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()
        assert self.endpoint, "the server did not start"

    @property
    def env(self) -> dict[str, str]:
        """What makes a process use this server, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def call(self, path: str, **body: object) -> dict:
        """Send JSON to the server; return its answer."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}{path}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def bucket(self) -> str:
        """Make a bucket; return its name."""
        name = f"bucket-{uuid.uuid4().hex[:8]}"
        self.call("/storage/v1/b", name=name)
        return name

    def faults(self, *rules: dict, seed: int = 0) -> None:
        """Say what goes wrong from now on, see tests/gcs/faults.py; nothing: all goes well."""
        self.call("/_control/faults", rules=rules, seed=seed)

    def access(self, **who: object) -> None:
        """Say who may come in: `tokens`, `denied` buckets, `issues` a token; all by default."""
        self.call("/_control/access", **who)

    def counts(self) -> dict:
        """Return how many requests came since `faults`, and what was done to them."""
        return self.call("/_control/counts")

    def injected(self) -> int:
        """Return how many faults there were since `faults`."""
        return sum(self.counts()["kinds"].values())

    def objects(self, url: str) -> dict[str, dict]:
        """Return size and checksum of each object below a URL, as the server has them."""
        bucket, _, prefix = url.removeprefix("gs://").partition("/")
        found = self.call("/_control/objects", bucket=bucket)
        return {n.removeprefix(prefix): o for n, o in found.items() if n.startswith(prefix)}

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Gcs:
    """A bucket of its own for a test."""

    def __init__(self, server: GcsServer) -> None:
        self.server, self.env = server, server.env
        self.name = server.bucket()
        self.url = f"gs://{self.name}"


@pytest.fixture(scope="session")
def gcs_server():
    """A GCS server that all tests share: who makes faults clears them."""
    server = GcsServer()
    with contextlib.closing(server):
        yield server


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """A bucket on a GCS server; this process and those it starts reach it as `gs://`."""
    gcs_server.faults()
    gcs_server.access()
    for name, value in gcs_server.env.items():
        monkeypatch.setenv(name, value)
    yield Gcs(gcs_server)
    gcs_server.faults()
    gcs_server.access()


@pytest.fixture(scope="module")
def job_cluster():
    """A Ray head that takes jobs over HTTP from who has its token, and two nodes of a core each."""
    from benchmarks.local_head import LocalHead

    head = LocalHead()
    with contextlib.closing(head):
        head.start()
        head.add()
        head.add()
        yield head
