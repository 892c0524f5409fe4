"""docs/preencode.md is true: its configs load, its columns and files are those that are written."""

import re
from pathlib import Path

import pytest
import yaml

from imagen.config import build
from preencode.commands import bring
from preencode.config import PreencodeConfig
from preencode.sources.config import KINDS, SourceConfig

TEXT = (Path(__file__).parents[2] / "docs" / "preencode.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
LINES = [line for line in BLOCKS[1].splitlines() if line]


def test_the_first_config_needs_no_members():
    config = build(PreencodeConfig, yaml.safe_load(BLOCKS[0]))
    assert config.members == {}
    assert config.preencode.gpus_per_actor == 1


@pytest.mark.parametrize("line", LINES)
def test_every_source_that_is_shown_is_taken(line):
    assert build(SourceConfig, yaml.safe_load(line)["source"]).name in KINDS


def test_every_kind_of_source_is_told_here_and_in_the_help():
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.M)
    assert sorted(rows) == sorted(KINDS)
    assert all(f"\n  {kind} " in bring.TEXT for kind in KINDS)
