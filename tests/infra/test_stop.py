"""stop.sh, run against a `kubectl` that writes down what it is asked."""

import os
import re
import subprocess

import pytest

KUBECTL = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
    *jobStatus*) printf %s "$STATE" ;;
    *rayClusterName*) printf c-x7k2p ;;
    *jobId*) printf imagen-train-base-q4 ;;
    *"get pod"*) echo pod/c-x7k2p-head-9d ;;
    *" exec "*) exit "$BROKEN" ;;
esac
"""


@pytest.fixture
def stop(infra, tmp_path):
    """Run stop.sh; return its process and what kubectl was asked."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    log = tmp_path / "log"
    log.touch()

    def run(*words, state="RUNNING", broken=0):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
        env |= {"STATE": state, "BROKEN": str(broken)}
        line = [str(infra / "kuberay" / "stop.sh"), *words]
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        return done, log.read_text().splitlines()

    return run


def test_a_job_is_stopped_by_ray_which_waits_and_deleted_then(stop):
    done, asked = stop("imagen-train-base")
    assert done.returncode == 0, done.stderr
    assert asked[-3:] == [
        "-n imagen get pod -l ray.io/cluster=c-x7k2p,ray.io/node-type=head -o name",
        "-n imagen exec pod/c-x7k2p-head-9d -c ray-head -- "
        "ray job stop --address http://127.0.0.1:8265 imagen-train-base-q4",
        "-n imagen delete rayjob imagen-train-base",
    ]


def test_a_job_that_could_not_be_stopped_is_not_deleted(stop):
    done, asked = stop("imagen-train-base", broken=1)
    assert done.returncode == 1
    assert not any("delete" in line for line in asked)


@pytest.mark.parametrize("state", ["", "SUCCEEDED"])
def test_a_job_that_does_not_run_is_only_deleted(stop, state):
    done, asked = stop("imagen-train-base", state=state)
    assert done.returncode == 0
    assert "does not run" in done.stderr
    assert [line.split()[2] for line in asked] == ["get", "delete"]


def test_a_stop_without_a_name_asks_nothing(stop):
    done, asked = stop()
    assert (done.returncode, asked) == (2, [])
    assert "usage:" in done.stderr


def test_nobody_is_told_that_a_deletion_leaves_a_checkpoint(infra):
    for path in (
        *(infra / "kuberay").glob("*.yaml"),
        infra / "README.md",
        infra.parent / "docs" / "cluster.md",
    ):
        for line in path.read_text().splitlines():
            if "delete rayjob" in line:
                assert re.search(r"`kubectl .*delete rayjob", line), f"{path.name}: {line}"
    header = (infra / "kuberay" / "train.yaml").read_text().split("apiVersion")[0]
    assert "with a checkpoint: infra/kuberay/stop.sh imagen-train-base" in header
