import io
import pickle
import tarfile

import numpy as np
import pytest

from imagen import storage
from imagen.data import open_shards, prepared, tars
from imagen.data.shard_cache import ShardCache
from imagen.errors import ShardError


def two_shards(samples):
    return {"00000": samples(20, "a"), "00001": samples(11, "b")}


@pytest.mark.parametrize("cache", [None, "cache"])
@pytest.mark.parametrize("place", ["local", "memory://prepared-test"])
def test_images_captions_and_keys_come_back_by_shard_and_row(
    place, cache, samples, index_folder, tmp_path
):
    out = f"{place}/{tmp_path.name}" if "://" in place else tmp_path
    shards = two_shards(samples)
    opened = index_folder(out, {name: tars.write_tar(parts) for name, parts in shards.items()})
    if cache:
        copies = ShardCache(str(tmp_path / cache), 10**6)
        opened = prepared.Prepared.open(opened.index_dir, copies)
    assert [s.name for s in opened.shards] == ["00000", "00001"]
    for shard, parts in enumerate(shards.values()):
        for row, (key, files) in enumerate(parts):
            assert opened.key(shard, row) == key
            assert opened.image(shard, row) == files["png"]
            assert opened.caption(shard, row) == files["txt"].decode()


def test_the_splits_share_no_row_and_leave_none_out(samples, index_folder, tmp_path):
    opened = index_folder(tmp_path, {"00000": tars.write_tar(samples(50))})
    train, heldout = opened.rows(0, "train"), opened.rows(0, "heldout")
    assert train.dtype == heldout.dtype == np.int32
    assert sorted([*train, *heldout]) == list(range(50))
    assert (len(train), len(heldout)) == (opened.shards[0].train, opened.shards[0].heldout)
    assert len(heldout) > 0
    assert list(train) == sorted(train)


def test_a_prepared_set_survives_pickling(samples, index_folder, tmp_path):
    opened = index_folder(tmp_path, {"00000": tars.write_tar(samples(9))})
    opened.image(0, 3)
    again = pickle.loads(pickle.dumps(opened))
    assert again.image(0, 3) == opened.image(0, 3)
    assert len(pickle.dumps(opened)) < 2000  # arrays do not travel


def test_a_project_folder_can_be_moved(samples, index_folder, tmp_path):
    index_folder(tmp_path / "old", {"00000": tars.write_tar(samples(9))})
    (tmp_path / "old").rename(tmp_path / "new")
    opened = prepared.Prepared.open(str(tmp_path / "new" / "index"))
    assert opened.caption(0, 2) == "caption s 2"


def test_tars_elsewhere_keep_their_own_path():
    assert prepared.relative_tar("/run/index", "/bucket/00000.tar") == "/bucket/00000.tar"
    assert prepared.relative_tar("/run/index", "/run/data/0.tar") == "../data/0.tar"
    assert prepared.resolve_tar("gs://b/run/index", "../data/0.tar") == "gs://b/run/data/0.tar"


def test_the_fingerprint_follows_captions_images_and_held_out_share(
    samples, index_folder, tmp_path
):
    one = tars.write_tar(samples(9))
    images = tars.write_tar([(k, {**f, "png": f["png"] + b"\0"}) for k, f in samples(9)])
    other = tars.write_tar(samples(9, "t"))
    prints = [
        index_folder(tmp_path / "a", {"00000": one}).fingerprint,
        index_folder(tmp_path / "b", {"00000": one}).fingerprint,
        index_folder(tmp_path / "c", {"00000": other}).fingerprint,
        index_folder(tmp_path / "d", {"00000": one}, heldout=0.3).fingerprint,
        index_folder(tmp_path / "e", {"00000": images}).fingerprint,
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_a_tar_replaced_after_indexing_shows_at_the_first_image(samples, index_folder, tmp_path):
    opened = index_folder(tmp_path, {"00000": tars.write_tar(samples(9))})
    storage.put(opened.shards[0].tar, tars.write_tar(samples(9)[::-1]))
    with pytest.raises(ShardError, match="has changed since it was indexed: row 0 is no longer"):
        opened.image(0, 0)


def extended(key: str, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for extension, data in files.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_replaced_tar_with_extended_headers_shows_by_its_size(
    samples, index_folder, tmp_path, place, cached
):
    out = tmp_path if place == "local" else f"memory://replaced-{tmp_path.name}"
    files = samples(1)[0][1]
    opened = index_folder(out, {"00000": extended("k" * 150, files)})
    opened.cache = ShardCache(str(tmp_path / "cache"), 10**6) if cached else None
    longer = {"extra": bytes(20000), **files}
    storage.put(opened.shards[0].tar, extended("k" * 150, longer))
    with pytest.raises(ShardError, match=r"has changed since it was indexed: it has \d+ bytes"):
        opened.image(0, 0)


def test_only_the_shards_used_last_stay_open(samples, index_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(open_shards, "OPEN_SHARDS", 2)
    parts = {f"{i:05d}": tars.write_tar(samples(3, f"{i}")) for i in range(4)}
    opened = index_folder(tmp_path, parts)
    assert [opened.key(shard, 0) for shard in (0, 1, 2, 3, 0)] == [
        f"{i}000" for i in (0, 1, 2, 3, 0)
    ]
    assert len(opened._shard) == 2


def test_an_index_of_an_older_version_is_an_error(samples, index_folder, tmp_path):
    opened = index_folder(tmp_path, {"00000": tars.write_tar(samples(3))})
    path = f"{opened.index_dir}/manifest.json"
    body = prepared.manifest.read(path, "dataset")
    del body["version"]
    prepared.manifest.write(path, "dataset", body)
    with pytest.raises(ShardError, match=r"is of version 1, this code reads version 3(.|\n)*hint"):
        prepared.Prepared.open(opened.index_dir)


def test_tars_with_extended_headers_are_read(samples, index_folder, tmp_path):
    key = "k" * 150
    opened = index_folder(tmp_path, {"00000": extended(key, samples(1)[0][1])})
    assert opened.key(0, 0) == key
    assert opened.image(0, 0) == samples(1)[0][1]["png"]


def test_an_unfinished_index_is_an_error_that_says_what_to_do(samples, index_folder, tmp_path):
    index_folder(tmp_path, {"00000": tars.write_tar(samples(9))})
    (tmp_path / "index" / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"no finished index in .*\n\nhint: run `python -m pre"):
        prepared.Prepared.open(str(tmp_path / "index"))


def test_the_manifest_of_a_data_set_adds_up_its_shards(samples, index_folder, tmp_path):
    broken = ("x", {"txt": b"no image"})
    shards = {
        "00000": tars.write_tar([*samples(5, "a"), broken]),
        "00001": tars.write_tar([*samples(4, "b"), broken]),
    }
    index_folder(tmp_path, shards)
    body = prepared.manifest.read(str(tmp_path / "index" / "manifest.json"), "dataset")
    assert body["rows"] == 9
    assert body["bad"] == {"no_image": 2}
