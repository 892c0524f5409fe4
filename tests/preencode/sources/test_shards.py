import json
from collections.abc import Iterator

import pytest

from imagen import storage
from imagen.data import tars
from imagen.errors import ConfigError
from preencode.sources import shards
from preencode.sources.rows import Bad, Row, Sample, Slice, equal_slices
from runtime import progress


class Rows:
    """A source of given rows, one slice."""

    title, listing, size_bytes = "rows", "", None

    def __init__(self, found: list[Row]) -> None:
        self.found, self.rows = found, len(found)
        self.ignored: dict[str, int] = {}

    def slices(self) -> Iterator[Slice]:
        yield Slice(0, self.rows)

    def read(self, part: Slice) -> Iterator[Row]:
        yield from self.found[part.start : part.stop]


def written(folder, sizes, shard_bytes: int) -> dict[str, list[str]]:
    """Write samples of the given sizes; return the keys of each tar."""
    found: list[Row] = [Sample(f"{i:03d}", {"png": bytes(s)}) for i, s in enumerate(sizes)]
    writer = shards.Writer(str(folder), "id", Rows(found), shard_bytes)
    with progress.bar("rows", None) as bar:
        body = writer.write(0, Slice(0, len(sizes)), bar)
    assert body["samples"] == len(sizes)
    assert body["files"].keys() == {n for n in storage.listdir(str(folder)) if n.endswith(".tar")}
    keys = {}
    for name in sorted(body["files"]):
        path = str(folder / name)
        members = tars.list_members(tars.open_tar(path), path).members
        keys[name] = [member.name.partition(".")[0] for member in members]
    return keys


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([10, 10, 10], [["000", "001", "002"]]),
        ([9000, 9000, 9000], [["000"], ["001"], ["002"]]),
        ([10, 50_000, 10], [["000"], ["001"], ["002"]]),  # one that is too large stands alone
        ([50_000], [["000"]]),
        ([10, 10, 9500, 10], [["000", "001"], ["002"], ["003"]]),
        ([], []),
    ],
)
def test_a_tar_is_closed_before_it_grows_too_large(tmp_path, sizes, wanted):
    keys = written(tmp_path, sizes, shard_bytes=20_480)
    assert list(keys.values()) == wanted
    assert list(keys) == ["00000.tar", "00000_001.tar", "00000_002.tar"][: len(wanted)]
    for name, found in keys.items():
        assert len(found) == 1 or storage.size(str(tmp_path / name)) <= 20_480


def test_bad_rows_are_counted_and_listed(tmp_path):
    rows: list[Row] = [
        Bad(0, "a", "no_image", "x"),
        Sample("k", {"png": b""}),
        Bad(2, "b", "dns", "y"),
    ]
    with progress.bar("rows", None) as bar:
        body = shards.Writer(str(tmp_path), "id", Rows(rows), 1000).write(7, Slice(0, 3), bar)
    assert (body["rows"], body["samples"]) == (3, 1)
    assert body["left_out"] == {"dns": 1, "no_image": 1}
    assert body["failures"][1] == {"row": 2, "where": "b", "reason": "dns", "detail": "y"}
    files = storage.sizes(str(tmp_path))
    assert shards.finished(str(tmp_path), files, 7, "id", Slice(0, 3)) == body | {
        "format": "imagen/source-shard/1"
    }


def test_a_shard_of_other_rows_or_another_import_is_not_finished(tmp_path):
    written(tmp_path, [5], 1000)
    files = storage.sizes(str(tmp_path))
    assert shards.finished(str(tmp_path), files, 0, "id", Slice(0, 1)) is not None
    assert shards.finished(str(tmp_path), files, 0, "id", Slice(0, 2)) is None
    assert shards.finished(str(tmp_path), files, 0, "other", Slice(0, 1)) is None
    assert shards.finished(str(tmp_path), files, 1, "id", Slice(0, 1)) is None


def test_only_files_of_imports_are_discarded(tmp_path):
    written(tmp_path, [5], 1000)
    for name in ("00001.tar", "00000_001.tar", "00009.json", "mine.tar", "notes.json"):
        (tmp_path / name).write_bytes(b"x")
    writer = shards.Writer(str(tmp_path), "id", Rows([]), 1000)
    assert sorted(writer.discard_others()) == ["00000.json", "00000.tar"]
    assert storage.listdir(str(tmp_path)) == ["00000.json", "00000.tar", "mine.tar", "notes.json"]
    shards.Writer(str(tmp_path), "other", Rows([]), 1000).discard_others()
    assert storage.listdir(str(tmp_path)) == ["mine.tar", "notes.json"]


def test_a_folder_with_tars_of_others_is_not_taken_for_an_import(tmp_path):
    for name in ("00000.tar", "00007.json", "manifest.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(b"{}")
        with pytest.raises(ConfigError, match=rf"holds {name}, which no import wrote(.|\n)*tars=/"):
            shards.begin(str(folder))
        assert storage.listdir(str(folder)) == [name]
    (tmp_path / "notes.json").write_bytes(b"{}")
    (tmp_path / "mine.tar").write_bytes(b"")
    for _ in range(2):  # what it wrote itself tells that the next tars are its own
        shards.begin(str(tmp_path))
        (tmp_path / "00000.tar").write_bytes(b"half of an import")


def test_failures_are_listed_one_shard_after_another(tmp_path):
    folder, total = str(tmp_path), shards.Total()
    for number in range(3):
        found: list[Row] = [Bad(number, "ä", "dns", "x")] * number
        with progress.bar("rows", None) as bar:
            writer = shards.Writer(folder, "id", Rows(found), 1000)
            total.add(number, writer.write(number, Slice(0, 3), bar))
    shards.publish_failures(folder, f"{folder}/f.jsonl", total)
    lines = (tmp_path / "f.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 2, 2]
    assert total.failure_bytes == storage.size(f"{folder}/f.jsonl")
    shards.publish_failures(folder, f"{folder}/f.jsonl", shards.Total())
    assert not (tmp_path / "f.jsonl").exists()


def test_slices_cover_all_rows_once():
    assert [(s.start, s.stop) for s in equal_slices(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert list(equal_slices(0, 3)) == []
    endless = equal_slices(None, 3)
    assert [len(next(endless)) for _ in range(4)] == [3, 3, 3, 3]
