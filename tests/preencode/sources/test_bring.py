import json
import os
from pathlib import Path

import pytest
import yaml

from imagen import storage
from imagen.config import load_config
from imagen.errors import ConfigError
from preencode import importing
from preencode.commands import bring
from preencode.config import PreencodeConfig

DEMO = Path(__file__).parents[3] / "pipeline" / "configs" / "digits.yaml"


@pytest.fixture
def bare(tmp_path) -> Path:
    """The demo's config without a section `source`."""
    tree = yaml.safe_load(DEMO.read_text())
    del tree["source"]
    tree["out"] = str(tmp_path / "run")
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def command(capsys):
    """Run the command with the given words; return what it prints."""

    def run(*words: str) -> str:
        assert bring.run(bring.parser().parse_args([str(word) for word in words])) == 0
        return capsys.readouterr().out

    return run


SMALL = ("source.samples=6", "source.size=32")


def test_a_kind_with_defaults_needs_no_section_in_the_config(command, bare):
    told = command("shapes", bare, *SMALL)
    assert "imported 6 samples in 1 tar shards" in told
    assert "already there: 6 samples" in command("shapes", bare, *SMALL)


def test_the_lines_that_are_printed_make_the_other_commands_find_the_import(command, bare):
    told = command("shapes", bare, *SMALL)
    with pytest.raises(ConfigError, match="there is no data"):
        load_config(PreencodeConfig, str(bare))
    with bare.open("a") as file:
        file.write(told[told.index("source: ") :])
    assert len(importing.list_tars(load_config(PreencodeConfig, str(bare)))) == 1
    assert "add to" not in command("shapes", bare)  # nothing is missing any more


def test_a_folder_can_be_given_as_it_is(command, bare, photos):
    path = photos(5)
    (path / "alone.png").write_bytes((path / "album0" / "IMG 000.png").read_bytes())
    (path / "notes.pdf").write_bytes(b"")
    told = command(path, bare)
    assert "imported 5 samples in 1 tar shards" in told
    assert "left out        1 no_caption (see failures.jsonl there)" in told
    assert "no images       1 files: .pdf" in told
    assert f"source: {{name: folder, path: {path}}}" in " ".join(told.split())


def test_a_list_can_be_given_as_it_is(command, bare, site, picture, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"url,caption\n{site.serve('/a.png', picture(1))},one\n")
    told = command(path, bare, "source.allow_private=true")
    assert "imported 1 samples" in told
    # a long path breaks the line
    assert f"{{name: urls, path: {path}, allow_private: true}}" in " ".join(told.split())


def test_a_dry_run_tells_rows_and_bytes_and_touches_nothing(command, bare, photos, tmp_path):
    path = photos(5)
    size = sum(file.stat().st_size for file in path.rglob("*.png"))
    told = command(path, bare, "source.shard_samples=2", "--dry-run")
    assert f"folder {path}: 5 rows, {size} B of images" in told
    assert f"to write        3 tar shards in {tmp_path}/run/data" in told
    assert not (tmp_path / "run").exists()
    command(path, bare, "source.shard_samples=2")
    os.unlink(tmp_path / "run" / "data" / "00001.tar")
    told = command(path, bare, "source.shard_samples=2", "--dry-run")
    assert "there already   2 of 3 tar shards\nto write        1 tar shards" in told


def test_another_kind_than_that_of_the_config_is_refused(command):
    with pytest.raises(ConfigError) as caught:
        command("./photos", DEMO)
    assert caught.value.message == "the config's `source` is 'digits', the command says 'folder'"
    assert "add 'source={name: folder, path: ./photos}'" in str(caught.value.hint)


def test_what_the_hint_says_replaces_the_section(command, tmp_path):
    section = "source={name: shapes, samples: 4, size: 32}"
    assert "imported 4 samples" in command("shapes", DEMO, section, f"out={tmp_path}/run")


def test_a_kind_that_needs_a_path_says_so(command, bare):
    with pytest.raises(
        ConfigError, match=r"source `folder` needs `path`(.|\n)*source.path=./photos"
    ):
        command("folder", bare)


def test_help_teaches_every_kind_with_an_example():
    told = bring.parser().format_help()
    for kind in ("digits", "shapes", "folder", "hub", "urls"):
        assert f"\n  {kind}" in told
        assert f"python -m preencode import {kind} CONFIG" in told
    assert "img2dataset" in told


def test_the_failures_are_where_the_command_says(command, bare, photos, picture, tmp_path):
    path = photos(2)
    (path / "alone.png").write_bytes(picture(9))
    command(path, bare)
    (line,) = (tmp_path / "run" / "data" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "alone.png"


def test_nothing_is_touched_beside_tars_that_are_used_in_place(bare, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    left = tars / f"a.tar{storage.TEMP_MARK}1-ab"
    left.write_bytes(b"somebody is writing this")
    for place in (tars, tmp_path / "tarz"):
        for more in ([], ["--dry-run"]):
            words = ["digits", str(bare), f"data.tars={place}", *more]
            with pytest.raises(ConfigError, match="used in place, not imported"):
                bring.run(bring.parser().parse_args(words))
    assert os.listdir(tars) == [left.name]
    assert sorted(os.listdir(tmp_path)) == ["bare.yaml", "tars"]


def test_what_a_killed_import_left_half_written_is_swept_at_once(command, bare, tmp_path):
    left = tmp_path / "run" / "data" / f"00000.tar{storage.TEMP_MARK}1-ab"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a tar")
    command("shapes", bare, *SMALL)
    assert not left.exists()
