import json

import pytest

from imagen import manifest, storage
from imagen.errors import CheckpointError, ShardError, StorageError


@pytest.fixture
def made(tmp_path):
    """A folder with two data files and the manifest that lists them."""
    folder = str(tmp_path)
    files = manifest.put_files(folder, {"a.bin": b"aaaa", "b.bin": b"bb"})
    path = storage.join(folder, "manifest.json")
    manifest.write(path, "thing", {"rows": 3, "files": files})
    return path


def test_a_manifest_is_read_back_with_its_format(made):
    body = manifest.read(made, "thing")
    assert (body["format"], body["rows"]) == ("imagen/thing/1", 3)
    assert body["files"]["b.bin"] == {"bytes": 2, "crc32c": storage.crc32c(b"bb")}


def test_a_manifest_of_another_kind_is_refused_with_both_names(made):
    with pytest.raises(ShardError, match="has format 'imagen/thing/1', not 'imagen/index/1'"):
        manifest.read(made, "index")


def test_a_missing_manifest_is_an_error_of_the_asked_kind(tmp_path):
    with pytest.raises(CheckpointError, match=r"no manifest `.*`: .* missing or unfinished"):
        manifest.read(str(tmp_path / "none.json"), "thing", CheckpointError)


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_that_says_what_to_do(made, data):
    storage.put(made, data)
    with pytest.raises(ShardError, match=r"manifest `.*manifest\.json` is damaged") as caught:
        manifest.read(made, "thing")
    assert caught.value.hint == "delete it and run again"


def test_json_that_is_no_manifest_is_refused(made):
    storage.put(made, b"[1, 2]")
    with pytest.raises(ShardError, match="has format 'list'"):
        manifest.read(made, "thing")


def test_complete_is_what_has_all_files_in_their_size(made):
    assert manifest.read_if_complete(made, "thing") == manifest.read(made, "thing")


@pytest.mark.parametrize("change", ["lost", "short", "another kind", "damaged", "no manifest"])
def test_incomplete_is_what_lacks_anything(made, change):
    data = made.replace("manifest.json", "b.bin")
    if change == "lost":
        storage.delete(data)
    elif change == "short":
        storage.put(data, b"b")
    elif change == "another kind":
        storage.put(made, json.dumps({"format": "imagen/other/1"}).encode())
    elif change == "damaged":
        storage.put(made, b"{")
    else:
        storage.delete(made)
    assert manifest.read_if_complete(made, "thing") is None


@pytest.mark.parametrize("what", ["get", "size"])
def test_what_cannot_be_looked_at_is_not_taken_for_missing(made, what, monkeypatch):
    def unreachable(*_):
        raise StorageError("the bucket does not answer")

    monkeypatch.setattr(storage, what, unreachable)
    with pytest.raises(StorageError, match="does not answer"):
        manifest.read_if_complete(made, "thing")


def test_a_listing_saves_looking_at_each_file(made, monkeypatch):
    folder = made.rpartition("/")[0]
    listing = storage.sizes(folder)
    for lookup in ("size", "exists"):
        monkeypatch.delattr(storage, lookup)
    assert manifest.read_if_complete(made, "thing", listing) is not None
    for name in listing:
        fewer = {n: size for n, size in listing.items() if n != name}
        assert manifest.read_if_complete(made, "thing", fewer) is None


def test_a_flipped_byte_is_found_and_the_file_named(made):
    path = made.replace("manifest.json", "a.bin")
    entry = manifest.read(made, "thing")["files"]["a.bin"]
    with pytest.raises(CheckpointError, match=r"a\.bin` has 4 bytes with checksum .* its manifest"):
        manifest.check_file(path, b"aaba", entry, CheckpointError)


def test_a_checked_file_is_returned():
    entry = {"bytes": 2, "crc32c": storage.crc32c(b"bb")}
    assert manifest.check_file("b.bin", b"bb", entry, ShardError) == b"bb"


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert manifest.fingerprint({"a": 1, "b": [1, 2]}) == manifest.fingerprint(
        {"b": [1, 2], "a": 1}
    )


def test_a_fingerprint_changes_with_any_value():
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"b": 1}, [1, 2], [2, 1]]
    assert len({manifest.fingerprint(value) for value in values}) == len(values)


def test_a_fingerprint_is_frozen():
    # names folders on disk: a change here makes every encoder's embeddings look missing
    assert manifest.fingerprint({"encoder": "tiny-t5", "d": 256}) == "d10d3223e2e74b16"
