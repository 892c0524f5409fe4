"""Folders as img2dataset leaves them (layout as of 1.47.0), used in place."""

import json

import pytest

from imagen.data import img2dataset, index, tars
from imagen.errors import ShardError


@pytest.fixture
def folder(tmp_path, samples):
    """Two finished shards and one that was begun, in completion order, failures in a parquet."""
    for shard in range(3):
        parts = []
        for key, files in samples(5, f"0000{shard}000"):
            facts = {"key": key, "caption": files["txt"].decode(), "status": "success"}
            parts.append((key, {**files, "json": json.dumps(facts, indent=4).encode()}))
        name = f"{shard:05d}"
        (tmp_path / f"{name}.tar").write_bytes(tars.write_tar(parts[::-1]))
        (tmp_path / f"{name}.parquet").write_bytes(b"not read")
    for name in ("00000", "00001"):
        stats = {"count": 9, "successes": 5, "failed_to_download": 4}
        (tmp_path / f"{name}_stats.json").write_text(json.dumps(stats))
    return tmp_path


def test_a_shard_without_stats_is_left_out_and_named(folder):
    assert [tar.name for tar in tars.list_tars(str(folder))] == ["00000", "00001"]
    assert tars.unfinished(str(folder)) == ["00002.tar"]


def test_tars_of_others_have_no_stats_and_are_all_used(folder):
    for path in folder.glob("*_stats.json"):
        path.unlink()
    assert len(tars.list_tars(str(folder))) == 3
    assert tars.unfinished(str(folder)) == []


def test_a_folder_of_begun_shards_alone_says_so(folder):
    for name in ("00000", "00001"):
        (folder / f"{name}.tar").unlink()
    with pytest.raises(ShardError, match="but 1 that img2dataset has not finished"):
        tars.list_tars(str(folder))


def indexed(path) -> index.ShardIndex:
    return index.index_tar(tars.open_tar(str(path)), str(path), 0.1)


def test_rows_are_in_the_order_of_the_tar_and_captions_those_of_the_text(folder):
    found = indexed(folder / "00000.tar")
    assert [bytes(key) for key in found.keys] == [b"00000000%03d" % i for i in (4, 3, 2, 1, 0)]
    assert found.captions[0] == "caption 00000000 4"


def test_a_tar_that_holds_what_its_stats_say_is_accepted(folder):
    img2dataset.check(str(folder / "00000.tar"), indexed(folder / "00000.tar"))
    img2dataset.check(str(folder / "00002.tar"), indexed(folder / "00002.tar"))  # has none


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ('{"successes": 6}', r"holds 5 samples, `00000_stats.json` says 6(.|\n)*download this"),
        ("{", "is not what img2dataset writes: JSONDecodeError"),
        ("{}", "is not what img2dataset writes: KeyError"),
    ],
)
def test_a_tar_that_holds_something_else_is_an_error(folder, stats, message):
    (folder / "00000_stats.json").write_text(stats)
    with pytest.raises(ShardError, match=message):
        img2dataset.check(str(folder / "00000.tar"), indexed(folder / "00000.tar"))


def test_samples_left_out_count_as_what_img2dataset_delivered(folder, samples):
    parts = [*samples(4, "x"), ("y", {"txt": b"no image"})]
    (folder / "00000.tar").write_bytes(tars.write_tar(parts))
    img2dataset.check(str(folder / "00000.tar"), indexed(folder / "00000.tar"))
