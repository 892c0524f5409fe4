"""The stage as a job that is submitted to a cluster over HTTP, with the code that it ships."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CONFIG = "pipeline/configs/digits.yaml"


def test_a_submitted_job_encodes_with_the_code_it_ships(job_cluster, tars, tmp_path):
    folder, out = tars(2, 5), tmp_path / "run"
    command = [
        *(f"{Path(sys.executable).parent}/ray", "job", "submit", "--address", job_cluster.url),
        *("--working-dir", str(ROOT), "--"),
        *("python", "-m", "preencode", CONFIG, f"out={out}", f"data.tars={folder}"),
    ]
    deadline = time.monotonic() + 240
    while True:  # the dashboard answers before the agent that runs jobs is there
        submitted = subprocess.run(
            command,
            cwd=tmp_path,  # not the checkout: the job brings it
            env=os.environ | job_cluster.token,
            capture_output=True,
            text=True,
            timeout=240,
        )
        if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
            break
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "indexed 2 and encoded 2 of 2 shards" in submitted.stdout
    assert (out / "index" / "manifest.json").exists()
