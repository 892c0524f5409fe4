"""Fixtures of the tests of infra/: its files, filled in as a person would."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SETTINGS = {
    "PROJECT": "my-project",
    "REGION": "us-central1",
    "IMAGE": "us-central1-docker.pkg.dev/my-project/imagen/imagen:1920203-cuda",
    "CONFIG": "gs://my-project-imagen-runs/digits.yaml",
}


@pytest.fixture(scope="session")
def infra() -> Path:
    """The folder."""
    return INFRA


@pytest.fixture(scope="session")
def render():
    """Fill in a file with infra/render.sh."""

    def run(path: Path, **changes: str | None) -> subprocess.CompletedProcess:
        settings = {k: v for k, v in (SETTINGS | changes).items() if v is not None}
        return subprocess.run(
            ["bash", str(INFRA / "render.sh"), str(path)],
            env={"PATH": os.environ["PATH"], **settings},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def steps():
    """Return the instructions of the Dockerfile as (name, argument), continued lines joined."""
    text = (INFRA / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]
