import subprocess
import sys
from pathlib import Path

import pytest

from preencode import report

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = "pipeline/configs/digits.yaml"


def preencode(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "preencode", *words], cwd=ROOT, capture_output=True, text=True
    )


def test_help_teaches_both_commands():
    told = preencode("--help").stdout
    assert "python -m preencode import digits" in told
    assert "exit status: 0 all done; 1 some shards failed; 2" in told
    assert "quarantine.jsonl" in told


def test_help_of_import_names_the_sources():
    told = preencode("import", "--help").stdout
    assert "SOURCE is `digits`" in told
    assert "source: {name: digits, shards: 8}" in told


def test_an_unknown_source_is_refused():
    done = preencode("import", "laion", CONFIG)
    assert done.returncode == 2
    assert "unknown source `laion`; known: digits" in done.stderr


def test_a_missing_config_file_is_an_error_with_a_hint():
    done = preencode("nowhere.yaml")
    assert done.returncode == 2
    assert "error: config file `nowhere.yaml` does not exist" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_typo_in_a_key_is_an_error_with_a_suggestion():
    done = preencode(CONFIG, "preencode.actor=2")
    assert done.returncode == 2
    assert "unknown key `preencode.actor`" in done.stderr
    assert "did you mean `actors`?" in done.stderr


def test_import_then_dry_run_tell_what_happens_and_a_dry_run_touches_nothing(tmp_path):
    out = f"out={tmp_path}/run"
    assert (
        "to write        8 tar shards"
        in preencode("import", "digits", CONFIG, out, "--dry-run").stdout
    )
    assert "nothing to index yet" in preencode(CONFIG, out, "--dry-run").stdout
    assert not (tmp_path / "run").exists()

    assert (
        "imported 1,797 samples in 8 tar shards"
        in preencode("import", "digits", CONFIG, out).stdout
    )
    before = sorted(p for p in tmp_path.rglob("*"))
    done = preencode(CONFIG, out, "--dry-run")
    assert "to index        8 shards" in done.stdout
    assert "to encode       8 shards" in done.stdout
    assert "captions        about 1," in done.stdout
    assert "max_tokens: 32" in done.stdout  # the resolved config
    assert sorted(p for p in tmp_path.rglob("*")) == before

    assert "already there: 1,797" in preencode("import", "digits", CONFIG, out).stdout


@pytest.mark.parametrize(
    ("size", "told"), [(0, "0 B"), (1600, "1.6 kB"), (164e12, "164 TB"), (2e6, "2 MB")]
)
def test_sizes_are_told_with_a_unit(size, told):
    assert report.human_bytes(size) == told
