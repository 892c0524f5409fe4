"""The pipeline on a real Ray cluster of three nodes, over HTTP, as a person on a laptop has it."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

from pipeline import addresses, jobs
from runtime import log

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 900
NETWORK = """channels: 1, widths: [16], blocks: [1], self_attention: [false],
      cross_attention: [true], text_dim: 256, cond_dim: 16, head_dim: 16"""
TRAIN = """{images: %d, global_batch: 16, microbatch: 16, workers: [1, 1], lanes: 2, window: 32,
    lr: 1.0e-3, checkpoint_every: 800, snapshot_every: 10000000, log_every: 16, validate: 0,
    grid: 0}"""
LONG = 10**7
CONFIG = f"""
name: tiny
out: %s
source: {{name: digits, shards: 2}}
text: {{encoder: tiny-t5, max_tokens: 16}}
members:
  base:
    size: 8
    network: {{kind: base, {NETWORK}}}
    sampling: {{steps: 2, guidance_scale: 1.0}}
  sr1:
    size: 16
    network: {{kind: efficient, {NETWORK}}}
    sampling: {{steps: 2, guidance_scale: 1.0}}
train:
  base: {TRAIN % 4000}
  sr1: {TRAIN % 160}
eval: {{prompts: digits, count: 10, grid: {{prompts: 2, seeds: 1}}}}
"""

ASK = """
import dataclasses, json, sys
from pipeline import jobs
known = jobs.Cluster(sys.argv[1]).of(sys.argv[2])
told = {name: [dataclasses.asdict(job) for job in found] for name, found in known.items()}
print(json.dumps(told))
"""


class Laptop:
    """A machine with a folder and a Python of its own, and the token of the cluster."""

    def __init__(self, folder, head):
        self.folder, self.head, self.out = folder, head, str(folder / "run")
        (folder / "tiny.yaml").write_text(CONFIG % self.out)
        venv.create(folder / "venv", symlinks=True)
        self.python = str(folder / "venv" / "bin" / "python")
        own = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        packages = Path(sysconfig.get_path("purelib", vars=own), "of-the-tests.pth")
        packages.write_text(sysconfig.get_path("purelib") + "\n")
        kept = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
        self.env = {**kept, "OMP_NUM_THREADS": "1", addresses.URL: head.url, **head.token}

    def start(self, *words, env=None):
        return subprocess.Popen(
            [self.python, "-m", "pipeline", *words],
            cwd=self.folder,
            env=self.env if env is None else env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words, status=0, env=None):
        """Run a command to its end; return what it told."""
        process = self.start(*words, env=env)
        told = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == status, told
        return told

    def jobs(self):
        """Return what the cluster knows of the run.

        Asked by another process: this one may have had another Ray, and would keep its token.
        """
        words = [sys.executable, "-c", ASK, self.head.url, self.out]
        told = subprocess.run(
            words, env=os.environ | self.head.token, cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        return {
            stage: [jobs.JobInfo(**job) for job in found]
            for stage, found in json.loads(told).items()
        }

    def events(self):
        return log.read(f"{self.out}/base/log.jsonl")

    def starts(self):
        """Return how many images each start of the base began with."""
        return [e["images_seen"] for e in self.events() if e.get("event") == "start"]

    def wait_for_steps(self, since, process=None):
        """Wait until base has trained past `since` images, as its log tells."""
        end = time.monotonic() + PATIENCE_S
        while max((e["images_seen"] for e in self.events() if "loss" in e), default=0) <= since:
            assert process is None or process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "nothing was trained"
            time.sleep(0.2)

    def wait_for_checkpoint(self, since, process):
        """Wait until base has saved a checkpoint of more than `since` images."""
        end = time.monotonic() + PATIENCE_S
        while not any(
            e.get("event") == "checkpoint" and e["images_seen"] > since for e in self.events()
        ):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "nothing was saved"
            time.sleep(0.2)

    def wait_for_end(self, stage):
        end = time.monotonic() + PATIENCE_S
        while (job := self.jobs()[stage][-1]).active:
            assert time.monotonic() < end, "the job did not end"
            time.sleep(0.5)
        return job


@pytest.fixture(scope="module")
def laptop(job_cluster, tmp_path_factory):
    return Laptop(tmp_path_factory.mktemp("laptop"), job_cluster)


@pytest.fixture(scope="module")
def line(laptop):
    """A line whose client was killed in training, and which another client saw to its end."""
    first = laptop.start("run", "tiny.yaml")
    try:
        laptop.wait_for_steps(0, first)
    finally:
        first.kill()
        first.communicate()
    running = [stage for stage, found in laptop.jobs().items() if found[-1].active]
    return laptop, running, laptop.run("run", "tiny.yaml")


def test_a_client_that_was_killed_is_followed_by_one_that_watches_the_same_jobs(line):
    laptop, running, told = line
    assert "train base" in running
    assert "train base: is run already by job imagen-train-base-" in told
    assert "preencode: done already" in told
    assert "train base | base trained: 4,000 images" in told
    states = {name: [job.status for job in found] for name, found in laptop.jobs().items()}
    stages = ["import", "preencode", "train base", "train sr1", "eval"]
    assert states == {stage: ["SUCCEEDED"] for stage in stages}  # each once
    assert laptop.starts() == [0]
    assert Path(laptop.out, "cascade").is_dir()


def test_the_jobs_ran_on_the_clusters_python_with_the_config_that_was_stored(line):
    laptop, _, _ = line
    (stored,) = Path(laptop.out, "submitted").iterdir()
    told = laptop.run("logs", "train-base", "tiny.yaml")
    assert f"python -m train {stored} member=base" in told
    assert laptop.python != sys.executable
    assert laptop.jobs()["eval"][0].config == stored.stem


def test_a_finished_line_submits_nothing(line):
    laptop, _, _ = line
    before = laptop.jobs()
    told = laptop.run("run", "tiny.yaml")
    assert told.count("done already") == 5
    assert laptop.jobs() == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("train-base", "tiny.yaml", "train.base.lrr=1"), "unknown key `train.base.lrr`"),
        (("train-bse", "tiny.yaml"), "did you mean train-base?"),
        (("train-base", "tiny.yaml", "out=run"), "`out` is `run`, which on a cluster"),
        (("train-base", "tiny.yaml", "out=/tmp/none"), "train base needs preencode, which is"),
        (("train-base", "tiny.yaml", "seed=5"), "seed"),
        (("train-base", "tiny.yaml", "train.base.init_from=/none"), "`/none`"),
        (("line", "tiny.yaml", "out=/tmp/none", "train.base.init_from=/none"), "`/none`"),
        (("train-base", "tiny.yaml", "--address", "head:8265"), "`head:8265` is no URL"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_submitted(line, words, reason):
    laptop, _, _ = line
    before = laptop.jobs()
    told = laptop.run("submit", *words, status=2)
    assert told.startswith("error: ")
    assert reason in told
    assert laptop.jobs() == before


def test_a_training_that_is_stopped_saves_a_checkpoint_and_goes_on_from_there(line):
    laptop, _, _ = line
    more = f"train.base.images={LONG}"
    (key,) = re.findall(
        "imagen-train-base-.*", laptop.run("submit", "train-base", "tiny.yaml", more)
    )[-1:]
    laptop.wait_for_steps(4000)
    again = laptop.run("submit", "train-base", "tiny.yaml", more)
    assert f"is run already by job {key}" in again
    other = laptop.run("submit", "train-base", "tiny.yaml", more, "train.base.lr=2e-3", status=2)
    assert "is being run by job" in other
    assert "with other settings" in other
    told = laptop.run("stop", "train-base", "tiny.yaml")
    assert "train base: STOPPED" in told
    last = laptop.events()[-1]
    assert (last["event"], last["reason"]) == ("checkpoint", "stop")
    end = last["images_seen"] + 160
    laptop.run("submit", "train-base", "tiny.yaml", f"train.base.images={end}", "--follow")
    assert laptop.starts() == [0, 4000, last["images_seen"]]
    assert "no job of it is running" in laptop.run("stop", "train-base", "tiny.yaml")


def test_of_two_schedules_that_overlap_one_runs_the_stage(line):
    laptop, _, _ = line
    words = ("schedule", "eval", "tiny.yaml", "eval.count=20", "--every", "1h")
    before = len(laptop.jobs()["eval"])
    schedules = [laptop.start(*words), laptop.start(*words)]
    try:
        told = [schedule.stdout.readline().split() for schedule in schedules]
        assert told[0][-1] == told[1][-1]
        assert sorted(words[1] for words in told) == ["is", "submitted"]
    finally:
        for schedule in schedules:
            schedule.send_signal(signal.SIGINT)
            schedule.communicate()
    assert laptop.wait_for_end("eval").status == "SUCCEEDED"
    assert len(laptop.jobs()["eval"]) == before + 1
    assert "python -m eval" in laptop.run("logs", "eval", "tiny.yaml")
    assert "--all" in laptop.run("logs", "eval", "tiny.yaml")


def test_who_has_no_token_is_told_so(line):
    laptop, _, _ = line
    bare = {name: value for name, value in laptop.env.items() if not name.startswith("RAY_AUTH")}
    told = laptop.run("submit", "eval", "tiny.yaml", env=bare, status=2)
    assert "lets in only who has its token" in told
    wrong = laptop.run(
        "submit", "eval", "tiny.yaml", env={**laptop.env, "RAY_AUTH_TOKEN": "0" * 32}, status=2
    )
    assert "lets in only who has its token" in wrong


def test_a_head_that_is_killed_and_started_again_goes_on_from_storage(line):
    laptop, _, _ = line
    before = max(laptop.starts()[-1], 4000)
    seen = max(e["images_seen"] for e in laptop.events())
    client = laptop.start("run", "tiny.yaml", f"train.base.images={seen + 6400}", "--only", "train")
    try:
        laptop.wait_for_checkpoint(seen, client)
        laptop.head.kill()
        laptop.head.start()
        laptop.head.add()
        laptop.head.add()
        told = client.communicate(timeout=PATIENCE_S)[0]
    finally:
        client.kill()
        client.communicate()
    assert client.returncode == 0, told
    assert "connection lost" in told
    assert "its job was lost with the cluster's head" in told
    assert laptop.starts()[-1] > seen >= before  # of work that the first job did
    assert max(e["images_seen"] for e in laptop.events()) == seen + 6400


def test_the_line_goes_on_in_a_job_of_its_own(line):
    laptop, _, _ = line
    words = ("line", "tiny.yaml", "eval.count=30", "--options=--only eval", "--follow")
    told = laptop.run("submit", *words)
    assert "line | eval: submitted as job imagen-eval-" in told
    assert "line | eval | eval: done, 30 images" in told
    assert "line: SUCCEEDED" in told
