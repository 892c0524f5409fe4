import io
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from imagen import storage
from imagen.data import index, tars
from imagen.errors import ConfigError, ShardError
from preencode import importing


def test_pictures_arrive_untouched_with_the_captions_beside_them(
    folder, photos, picture, read_import
):
    c = folder(photos(12))
    done = importing.run(c)
    assert (done.samples, done.shards, done.left_out, done.ignored) == (12, 1, {}, {})
    found = read_import(c)
    assert sorted(found.samples) == [f"{i:09d}" for i in range(12)]  # no dots, none twice
    assert list(found.samples) != sorted(found.samples)  # dealt by the seed
    for parts in found.samples.values():
        i = int(parts["txt"].decode().removeprefix("photo "))
        assert parts["png"] == picture(i)
        assert json.loads(parts["json"]) == {"file": f"album{i % 3}/IMG {i:03d}.png"}


def test_what_is_imported_can_be_indexed(folder, photos):
    c = folder(photos(12))
    importing.run(c)
    (tar,) = importing.list_tars(c)
    found = index.index_tar(tars.open_tar(tar.path), tar.path, 0.1)
    assert found.bad == []
    assert sorted(found.captions) == sorted(f"photo {i}" for i in range(12))


def test_the_seed_decides_the_order_and_nothing_else(folder, photos, read_import, config, tmp_path):
    path = photos(12)
    orders = []
    for seed in (0, 1):
        c = config(
            f"source={{name: folder, path: {path}}}", f"seed={seed}", f"out={tmp_path}/{seed}"
        )
        importing.run(c)
        orders.append(read_import(c).samples)
    assert list(orders[0]) != list(orders[1])
    assert orders[0] == orders[1]


def metadata(path, kind: str, rows: list[dict]) -> None:
    if kind == "jsonl":
        path.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(r.values()) for r in rows)]
        path.with_suffix(".csv").write_text("\n".join(lines))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_captions_may_be_in_a_list_as_in_imagefolder(folder, tmp_path, picture, read_import, kind):
    path = tmp_path / "set" / "train"
    path.mkdir(parents=True)
    for i in range(3):
        (path / f"{i}.jpg").write_bytes(picture(i, "jpeg"))
    rows = [{"file_name": f"{i}.jpg", "text": f"picture {i}"} for i in range(3)]
    metadata(path / "metadata", kind, rows)
    c = folder(tmp_path / "set")
    importing.run(c)
    assert sorted(read_import(c).captions) == ["picture 0", "picture 1", "picture 2"]


def test_the_columns_of_the_list_can_be_named(folder, tmp_path, picture, read_import):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture(1))
    metadata(tmp_path / "set" / "metadata", "csv", [{"where": "a.png", "alt": "yes", "text": "no"}])
    c = folder(tmp_path / "set", "image_column: where", "caption_column: alt")
    importing.run(c)
    assert read_import(c).captions == ["yes"]


def test_rows_that_cannot_be_used_are_left_out_counted_and_listed(
    folder, photos, picture, read_import
):
    path = photos(3)
    (path / "broken.jpg").write_bytes(b"<html>")
    (path / "broken.txt").write_text("not a picture")
    (path / "alone.png").write_bytes(picture(7))
    (path / "empty.png").write_bytes(picture(8))
    (path / "empty.txt").write_text(" \n")
    (path / "latin.png").write_bytes(picture(9))
    (path / "latin.txt").write_bytes("caf\xe9".encode("latin1"))
    (path / "notes.pdf").write_bytes(b"")
    (path / "README").write_bytes(b"")
    (path / "orphan.txt").write_text("of no picture")
    (path / ".DS_Store").write_bytes(b"")
    c = folder(path)
    done = importing.run(c)
    assert done.samples == 3
    assert done.left_out == {"no_caption": 2, "non_utf8": 1, "not_an_image": 1}
    assert done.ignored == {".pdf": 1, ".txt": 1, "no suffix": 1}
    found = read_import(c)
    assert found.manifest["left_out"] == done.left_out
    assert {f["where"]: f["reason"] for f in found.failures} == {
        "alone.png": "no_caption",
        "broken.jpg": "not_an_image",
        "empty.png": "no_caption",
        "latin.png": "non_utf8",
    }
    told = {f["where"]: f["detail"] for f in found.failures}
    assert told["alone.png"] == "there is no 'alone.txt'"
    assert "cannot identify image file" in told["broken.jpg"]


def test_rows_of_a_list_that_name_no_picture_of_the_folder_are_told(
    folder, tmp_path, picture, read_import
):
    path = tmp_path / "set"
    path.mkdir()
    (path / "a.png").write_bytes(picture(1))
    (path / "b.png").write_bytes(picture(2))
    (tmp_path / "secret.png").write_bytes(picture(3))
    names = ["a.png", "a.png", "gone.png", "../secret.png", "/etc/passwd", ""]
    rows = [{"file_name": name, "text": f"row {i}"} for i, name in enumerate(names)]
    metadata(path / "metadata", "jsonl", rows)
    c = folder(path)
    importing.run(c)
    found = read_import(c)
    assert found.captions == ["row 0"]
    assert {f["where"]: f["reason"] for f in found.failures} == {
        "b.png": "no_caption",
        "metadata.jsonl row 1": "duplicate_key",
        "metadata.jsonl row 2": "missing_file",
        "metadata.jsonl row 3": "missing_file",
        "metadata.jsonl row 4": "missing_file",
        "metadata.jsonl row 5": "bad_row",
    }


def test_other_formats_are_stored_as_png(folder, tmp_path, picture, read_import):
    path = tmp_path / "set"
    path.mkdir()
    (path / "a.GIF").write_bytes(picture(1, "gif"))
    (path / "a.txt").write_text("a gif")
    c = folder(path)
    importing.run(c)
    (parts,) = read_import(c).samples.values()
    assert sorted(parts) == ["json", "png", "txt"]
    assert Image.open(io.BytesIO(parts["png"])).size == (8, 8)


def test_shards_are_cut_by_number(folder, photos):
    c = folder(photos(12), "shard_samples: 5")
    importing.run(c)
    sizes = [
        len(index.index_tar(tars.open_tar(t.path), t.path, 0).keys) for t in importing.list_tars(c)
    ]
    assert sizes == [5, 5, 2]


def test_shards_are_cut_by_bytes(folder, tmp_path, read_import):
    path = tmp_path / "set"
    path.mkdir()
    for i in range(8):
        image = Image.effect_noise((100, 100), 90)  # about 10 kB, which no PNG makes smaller
        image.save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"noise {i}")
    c = folder(path, "shard_bytes: 40000")
    importing.run(c)
    found = importing.list_tars(c)
    assert len(found) == 4
    assert all(storage.size(tar.path) <= 40_000 for tar in found)
    assert len(read_import(c).samples) == 8


def test_a_bucket_gives_the_same_bytes_as_a_disk(folder, photos, tmp_path):
    path = photos(7)
    remote = f"memory://{tmp_path.name}/photos"
    for file in path.rglob("*.*"):
        storage.put(f"{remote}/{file.relative_to(path)}", file.read_bytes())
    here, there = folder(path), folder(remote, out="remote")
    importing.run(here)
    importing.run(there)
    tar_of = [storage.get(importing.list_tars(c)[0].path) for c in (here, there)]
    assert tar_of[0] == tar_of[1]


def test_a_folder_that_changed_is_imported_anew(folder, photos, picture, read_import):
    path = photos(6)
    c = folder(path, "shard_samples: 2")
    importing.run(c)
    assert not importing.run(c).fresh
    (path / "album0" / "IMG 000.txt").write_text("photo X\n")  # the same number of bytes
    assert importing.run(c).fresh
    assert "photo X" in read_import(c).captions
    (path / "album9").mkdir()
    (path / "album9" / "new.png").write_bytes(picture(99))
    (path / "album9" / "new.txt").write_text("new")
    assert importing.run(c).samples == 7


def test_an_import_stays_when_its_source_goes(folder, photos, tmp_path):
    path = photos(6)
    c = folder(path)
    importing.run(c)
    path.rename(tmp_path / "gone")
    assert len(importing.list_tars(c)) == 1  # what comes next needs the tars alone
    with pytest.raises(
        ConfigError, match=r"there is no folder `.*photos`\n\nhint: give the folder"
    ):
        importing.run(c)


def test_a_folder_without_pictures_is_an_error(folder, tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    with pytest.raises(
        ConfigError, match=r"no images in .*\n\nhint: an image is a file whose name"
    ):
        importing.run(folder(path))


def test_a_folder_without_captions_is_an_error_that_counts(folder, tmp_path, picture):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture(1))
    c = folder(tmp_path / "set")
    with pytest.raises(
        ShardError, match=r"no usable row among 1: 1 no_caption\n\nhint: see `.*fail"
    ):
        importing.run(c)
    assert importing.done(c) is None


def test_names_of_files_may_be_any_bytes(folder, photos, picture, read_import):
    path = photos(1)
    for stem, caption in ((b"caf\xe9", b"a cafe"), (b"bar\xff", b"")):
        with open(bytes(path) + b"/" + stem + b".png", "wb") as file:
            file.write(picture(5))
        with open(bytes(path) + b"/" + stem + b".txt", "wb") as file:
            file.write(caption)
    c = folder(path)
    importing.run(c)
    found = read_import(c)
    assert sorted(found.captions) == ["a cafe", "photo 0"]
    assert [f["where"] for f in found.failures] == ["bar\\udcff.png"]
