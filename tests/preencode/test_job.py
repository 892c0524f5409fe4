"""The stage as a job that is submitted to a cluster over HTTP, with the code that it ships."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import session

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
ROOT = Path(__file__).parents[2]
CONFIG = "pipeline/configs/digits.yaml"


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A local Ray with a dashboard, which takes jobs; yields its URL."""
    import ray

    session.settings()
    with tempfile.TemporaryDirectory(prefix="imagen-job-", dir="/tmp") as folder:
        context = ray.init(
            "local",
            _temp_dir=folder,
            num_cpus=2,
            include_dashboard=True,
            dashboard_port=0,
            object_store_memory=session.OBJECT_STORE_BYTES,
            log_to_driver=False,
        )
        try:
            yield f"http://{context.dashboard_url}"
        finally:
            ray.shutdown()


def test_a_submitted_job_encodes_with_the_code_it_ships(dashboard, tars, tmp_path):
    folder, out = tars(2, 5), tmp_path / "run"
    words = [f"out={out}", f"data.tars={folder}"]
    command = [
        *(f"{Path(sys.executable).parent}/ray", "job", "submit", "--address", dashboard),
        *("--working-dir", str(ROOT), "--"),
        *(sys.executable, "-m", "preencode", CONFIG, *words),
    ]
    deadline = time.monotonic() + 240
    while True:  # the dashboard answers before the agent that runs jobs is there
        submitted = subprocess.run(
            command,
            cwd=tmp_path,  # not the checkout: the job brings it
            capture_output=True,
            text=True,
            timeout=240,
        )
        if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
            break
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "indexed 2 and encoded 2 of 2 shards" in submitted.stdout
    assert (out / "index" / "manifest.json").exists()
