"""Keys and programs for the tests of this folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("FSSPEC_GS_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST"),
    *("STORAGE_EMULATOR_HOST", "CLOUDSDK_CONFIG", "GOOGLE_CLOUD_PROJECT"),
)


@pytest.fixture(scope="session")
def private_key() -> str:
    """An RSA key that belongs to nobody."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture
def service_account(tmp_path, private_key):
    """The path of a service account's key file whose tokens come from an endpoint."""

    def write(endpoint: str) -> str:
        body = {
            "type": "service_account",
            "project_id": "some-project",
            "private_key_id": "0123456789abcdef",
            "private_key": private_key,
            "client_email": "trainer@some-project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{endpoint}/token",
        }
        path = tmp_path / "key.json"
        path.write_text(json.dumps(body))
        return str(path)

    return write


@pytest.fixture
def program(tmp_path):
    """Run a Python program in a process without credentials: its result and its seconds."""

    def run(code: str, *args: str, **environment: str):
        clean = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        clean |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **environment}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
        )
        return done, time.monotonic() - began

    return run
