"""Fifty `kill -9` at random moments, of drivers and actors: the result is a quiet run's."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imagen.data.tars import write_tar
from runtime import log

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "pipeline" / "configs" / "digits.yaml")
KILLS = 50


def start(cluster: str, out: Path, tars: Path) -> subprocess.Popen:
    words = [CONFIG, f"out={out}", f"data.tars={tars}", "--address", cluster]
    with open(f"{out}.stderr", "ab") as told:
        return subprocess.Popen(
            [sys.executable, "-m", "preencode", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=told,
        )


def parent(pid: str) -> int:
    stat = Path("/proc", pid, "stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def actors() -> list[int]:
    """Return the processes of our actors: below this process, for other Rays may run here, too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if b"ray::EncodeActor" not in (entry / "cmdline").read_bytes():
                continue
            above = entry.name
            while int(above) > 1 and int(above) != os.getpid():
                above = str(parent(above))
        except (OSError, ValueError):
            continue
        if int(above) == os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture
def work(tmp_path, sample):
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(10):
        draw = np.random.RandomState(shard)
        captions = [" ".join(f"w{w}" for w in draw.randint(0, 5000, 24)) for _ in range(1000)]
        parts = [sample(f"{shard}{i:05d}", caption) for i, caption in enumerate(captions)]
        (folder / f"{shard:05d}.tar").write_bytes(write_tar(parts))
    return folder


@pytest.mark.timeout(900)
def test_fifty_kills_at_random_moments_end_in_the_bytes_of_a_quiet_run(
    work, cluster, contents, tmp_path
):
    quiet = start(cluster, tmp_path / "quiet", work)
    assert quiet.wait(300) == 0
    draw, out = random.Random(4), tmp_path / "killed"
    killed = {"driver": 0, "actor": 0}
    driver = start(cluster, out, work)
    while sum(killed.values()) < KILLS:
        time.sleep(draw.uniform(0.0, 2.0))
        if driver.poll() is not None:  # it was ready first, or set a shard aside: begin again
            assert driver.returncode in (0, 1), Path(f"{out}.stderr").read_text()
            forget(out, draw)
            driver = start(cluster, out, work)
        elif draw.random() < 0.1:
            driver.kill()
            driver.wait()
            killed["driver"] += 1
            driver = start(cluster, out, work)
        elif living := actors():
            os.kill(draw.choice(living), signal.SIGKILL)
            killed["actor"] += 1
    for _ in range(5):  # a shard that was hit three times is set aside, and done by the next run
        if driver.wait(300) == 0:
            break
        driver = start(cluster, out, work)
    assert driver.returncode == 0
    assert killed["driver"] >= 3
    assert killed["actor"] >= 25
    assert "Traceback" not in Path(f"{out}.stderr").read_text()
    assert contents(out) == contents(tmp_path / "quiet")
    events = log.read(f"{out}/logs/preencode.jsonl")
    assert sum(e["event"] == "actor_lost" for e in events) >= 10  # that many hit actors at work


def forget(out: Path, draw: random.Random) -> None:
    """Take the manifests of some finished shards away, so that there is work left to kill."""
    done = sorted(p for p in out.rglob("0*.json"))
    for path in draw.sample(done, len(done) // 2):
        path.unlink()
