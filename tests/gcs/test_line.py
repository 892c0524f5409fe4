"""The whole line with every path on `gs://`: quiet, in a bad network, with a node killed."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.local_nodes import HEALTH, LocalNodes
from imagen import storage
from runtime import log, session

pytestmark = [
    pytest.mark.gcs,
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray's own, in Ray
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of processes that we kill
]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600
MEMBER = """
    network: {kind: %s, channels: 1, widths: [16], blocks: [1], self_attention: [false],
      cross_attention: [true], text_dim: 256, cond_dim: 16, head_dim: 16}
    sampling: {steps: 2, guidance_scale: 1.0}
"""
TRAIN = """
    {images: %d, global_batch: 16, microbatch: 16, workers: [1, %d], lanes: 2, window: 32,
    lr: 1.0e-3, checkpoint_every: %d, snapshot_every: 160, log_every: 16, validate: 0, grid: 0}
"""


def config(out: str, images: int = 160, workers: int = 1, every: int = 80) -> str:
    """Return the config of a line of tiny members."""
    train = (TRAIN % (images, workers, every)).replace("\n", "")
    return f"""
name: tiny
out: {out}
source: {{name: digits, shards: 2}}
text: {{encoder: tiny-t5, max_tokens: 16}}
members:
  base:
    size: 8{MEMBER % "base"}
  sr1:
    size: 16{MEMBER % "efficient"}
train:
  base: {train}
  sr1: {train}
eval: {{prompts: digits, count: 10, grid: {{prompts: 2, seeds: 1}}}}
"""


@pytest.fixture(scope="module")
def server(gcs_server):
    """The server, for this process, for Ray's and for those of the stages."""
    gcs_server.faults()
    gcs_server.access()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in gcs_server.env.items():
            patched.setenv(name, value)
        yield gcs_server
    gcs_server.faults()


@pytest.fixture(scope="module")
def machines(server):
    """Two Ray nodes of a core each."""
    session.settings()
    made = LocalNodes(HEALTH)
    try:
        made.add()
        made.add()
        yield made
    finally:
        made.close()


class Line:
    """One line and its bucket."""

    def __init__(self, server, folder: Path, address: str, **options: int) -> None:
        self.server, self.folder, self.address = server, folder, address
        folder.mkdir()
        self.url = f"gs://{server.bucket()}/run"
        self.config = str(folder / "line.yaml")
        Path(self.config).write_text(config(self.url, **options))

    def start(self, *words: str) -> subprocess.Popen:
        """Start a command of a stage."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder)}
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> str:
        """Run a command to its end; return what it told."""
        process = self.start(*words)
        told = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == 0, told
        return told

    def whole(self) -> str:
        """Run all stages, publish the cascade and sample from it."""
        told = self.run("pipeline", "run", self.config, "--address", self.address)
        self.run("eval", "publish", self.config, f"{self.url}/published")
        source, target = f"{self.url}/published", str(self.folder / "seven.png")
        self.run("imagen.cli", "sample", "seven", "--cascade", source, "--out", target)
        return told

    def objects(self) -> dict[str, dict]:
        return self.server.objects(f"{self.url}/")

    def json(self, name: str) -> dict:
        return json.loads(storage.get(f"{self.url}/{name}"))


def check_complete(line: Line) -> None:
    """Check that every manifest lists objects that are there, whole."""
    there, manifests = line.objects(), 0
    for name in there:
        if not name.endswith(".json"):
            continue
        body = line.json(name)
        files = body.get("files")
        if not isinstance(files, dict):
            continue
        manifests += 1
        folder = name.rpartition("/")[0]
        for file, entry in files.items():
            found = there[f"{folder}/{file}"]
            assert found["bytes"] == entry["bytes"], f"{folder}/{file}"
    assert manifests >= 10


def results(line: Line) -> dict[str, object]:
    """Return what must not depend on the network: data, embeddings, weights, samples."""

    def is_result(name: str) -> bool:
        parts = name.split("/")
        kind = parts[0] in ("data", "embeddings") or "snapshots" in parts or "cascade" in parts
        return (kind and not name.endswith(".json")) or "samples" in parts

    return {
        name: base64.b64decode(entry["crc32c"]).hex()
        for name, entry in line.objects().items()
        if is_result(name)
    }


def leaves(tree: object, path: str = "") -> dict[str, object]:
    """Return what a tree of numbers and texts holds, by path; sums depend on the threads a bit."""
    if isinstance(tree, dict | list):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, part in parts for k, v in leaves(part, f"{path}.{key}").items()}
    number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return {path: pytest.approx(tree, rel=1e-3, abs=1e-5) if number else tree}


@pytest.fixture(scope="module")
def quiet(server, machines, tmp_path_factory):
    """A line in a quiet network."""
    line = Line(server, tmp_path_factory.mktemp("quiet") / "line", machines.address)
    server.faults()
    line.whole()
    return line


def test_the_whole_line_runs_in_a_bucket(quiet):
    check_complete(quiet)
    found = results(quiet)
    assert {name.split("/")[0] for name in found} >= {"data", "embeddings", "base", "sr1", "eval"}
    assert (quiet.folder / "seven.png").stat().st_size > 100
    told = quiet.run("pipeline", "run", quiet.config, "--address", quiet.address)
    assert told.count("done already") == 5


def test_a_bad_network_changes_nothing(server, machines, quiet, tmp_path):
    """One request in twenty fails in some way, and each takes 0.2 s longer."""
    line = Line(server, tmp_path / "line", machines.address)
    server.faults({"kind": "any", "probability": 0.05}, {"kind": "latency", "seconds": 0.2}, seed=1)
    try:
        line.whole()
        counts = server.counts()
    finally:
        server.faults()
    print(counts)
    assert sum(counts["kinds"].values()) > 20
    check_complete(line)
    assert results(line) == results(quiet)
    (mine,), (quiet_ones,) = (
        [n for n in one.objects() if n.startswith("eval/") and n.endswith("/metrics.json")]
        for one in (line, quiet)
    )
    found, wanted = line.json(mine), quiet.json(quiet_ones)
    for section in ("digit_accuracy", "members", "per_digit", "distribution", "memorisation"):
        assert leaves(found[section]) == leaves(wanted[section]), section
    assert (line.folder / "seven.png").read_bytes() == (quiet.folder / "seven.png").read_bytes()


def events(line: Line) -> list[dict]:
    return log.read(f"{line.url}/base/log.jsonl")


def wait(line: Line, process: subprocess.Popen, what) -> list[dict]:
    """Wait for something in the log of a training."""
    end = time.monotonic() + PATIENCE_S
    while not what(found := events(line)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, found[-3:]
        time.sleep(0.1)
    return found


def starts(found: list[dict]) -> list[dict]:
    return [event for event in found if event.get("event") == "start"]


def steps(found: list[dict]) -> dict[int, float]:
    return {e["images_seen"]: e["loss"] for e in found if e.get("loss") is not None}


def test_training_in_a_bucket_outlives_the_loss_of_a_node(server, machines, quiet, tmp_path):
    """Killed after a checkpoint; it goes on with what is left, from the bucket, and ends."""
    images = 16 * 200
    line = Line(server, tmp_path / "line", machines.address, images=images, workers=2, every=160)
    for name in quiet.objects():
        if name.startswith(("data/", "index/", "embeddings/")):
            storage.put(f"{line.url}/{name}", storage.get(f"{quiet.url}/{name}"))
    process = line.start("train", line.config, "member=base", "--address", machines.address)
    try:
        wait(line, process, lambda found: any(e.get("event") == "checkpoint" for e in found))
        machines.send(machines.nodes[-1], signal.SIGKILL)
        wait(line, process, lambda found: len(starts(found)) > 1)
        told = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == 0, told
    finally:
        process.kill()
        process.wait()
    found = events(line)
    begun = starts(found)
    assert begun[0]["images_seen"] == 0 < begun[-1]["images_seen"]
    assert sorted(steps(found)) == list(range(16, images + 1, 16))
    check_complete(line)
    assert line.json("base/run.json")["images_seen"] == images
