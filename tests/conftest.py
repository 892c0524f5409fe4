"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


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
