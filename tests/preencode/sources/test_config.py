from dataclasses import fields

import pytest

from imagen.config import build, to_tree
from imagen.errors import ConfigError
from preencode.sources.config import KINDS, TAKES, SourceConfig, identity, shortest


def source(**keys) -> SourceConfig:
    return build(SourceConfig, keys)


def test_the_demos_section_loads_and_decides_the_same_bytes_as_ever():
    assert identity(source(name="digits", shards=8)) == {"name": "digits", "shards": 8}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"name": "digits", "path": "./x"},
            r"path './x' has no effect on source `digits`\n\nhint: take it out; it is for fold",
        ),
        ({"name": "folder", "path": "x", "threads": 3}, r"threads 3 has no effect on source `fold"),
        ({"name": "shapes", "shards": 3}, r"shards 3 has no effect on source `shapes`"),
        ({"name": "folder"}, r"source `folder` needs `path`\n\nhint: source.path=./photos"),
        ({"name": "hub"}, r"source `hub` needs `path`\n\nhint: source.path=owner/name"),
        ({"name": "urls"}, r"source `urls` needs `path`\n\nhint: source.path=list.parquet"),
        ({"name": "laion"}, r"'digits', 'folder', 'hub', 'shapes' or 'urls', got 'laion'"),
        ({"name": "digits", "shards": 0}, r"shards 0 is not in \[1, 1000\]"),
        ({"name": "shapes", "size": 8}, r"size 8 is not in \[32, 1024\]"),
        ({"name": "shapes", "heldout_pairs": 0.6}, r"every colour and every shape must still be"),
        ({"name": "shapes", "samples": 0}, r"samples 0 is less than 1"),
        ({"name": "urls", "path": "x", "threads": 0}, r"threads 0 is not in \[1, 256\]"),
        ({"name": "urls", "path": "x", "timeout_s": 0}, r"timeout_s 0.0 is not above 0"),
        ({"name": "urls", "path": "x", "retries": -1}, r"retries -1 is not in \[0, 10\]"),
        ({"name": "folder", "path": "x", "shard_bytes": 0}, r"shard_bytes 0 is less than 1"),
    ],
)
def test_a_key_that_is_wrong_or_has_no_effect_is_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        source(**keys)


@pytest.mark.parametrize("kind", KINDS)
def test_the_resolved_section_is_itself_a_valid_input(kind):
    found = source(name=kind, **({"path": "x"} if "path" in TAKES[kind] else {}))
    assert source(**to_tree(found)) == found
    assert source(**shortest(found)) == found


def test_every_key_has_an_effect_on_some_kind():
    used = {key for keys in TAKES.values() for key in keys}
    assert used == {field.name for field in fields(SourceConfig)} - {"name"}


def test_how_fast_urls_are_fetched_is_no_part_of_what_they_are():
    slow = source(name="urls", path="x", threads=1, timeout_s=99, retries=0)
    assert identity(slow) == identity(source(name="urls", path="x"))
    assert identity(source(name="urls", path="x", largest_bytes=5)) != identity(slow)


@pytest.mark.parametrize(("kind", "same"), [("folder", True), ("urls", True), ("hub", False)])
def test_where_a_folder_or_a_list_is_is_no_part_of_what_it_is(kind, same):
    assert (identity(source(name=kind, path="x")) == identity(source(name=kind, path="y"))) is same


def test_the_shortest_section_says_what_is_no_default():
    found = source(name="shapes", samples=7, size=64)
    assert shortest(found) == {"name": "shapes", "samples": 7}
