import importlib
import json
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from imagen.errors import ConfigError, StorageError
from preencode import importing
from preencode.sources import hub
from preencode.sources.config import SourceConfig
from preencode.sources.rows import Bad, Slice

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of `datasets`, which is somebody else's
]
ROWS = 25


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory):
    """`datasets` with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        yield pytest.importorskip("datasets", reason="the extra `hub` is not installed")


@pytest.fixture
def imagefolder(tmp_path, picture) -> Path:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for i in range(ROWS):
        (folder / f"{i:02d}.png").write_bytes(picture(i))
    rows = [{"file_name": f"{i:02d}.png", "text": f"picture {i}"} for i in range(ROWS)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


@pytest.fixture
def parquets(tmp_path, picture) -> Path:
    folder = tmp_path / "parquets"
    folder.mkdir()
    rows = [
        {"image": {"bytes": picture(i), "path": f"{i}.png"}, "caption": f"picture {i}"}
        for i in range(ROWS)
    ]
    for part in range(2):
        table = pa.Table.from_pylist(rows[part * 13 : (part + 1) * 13])
        parquet.write_table(table, folder / f"train-0000{part}-of-00002.parquet")
    return folder


@pytest.fixture
def saved(tmp_path, picture, library) -> Path:
    data = library.Dataset.from_dict(
        {
            "image": [{"bytes": picture(i), "path": None} for i in range(ROWS)],
            "text": [f"picture {i}" for i in range(ROWS)],
        },
        features=library.Features({"image": library.Image(), "text": library.Value("string")}),
    )
    library.DatasetDict({"train": data, "test": data.select([3])}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def hub_config(config, tmp_path):
    def make(path, out="run", **keys):
        section = {"name": "hub", "path": str(path), "shard_samples": 10, **keys}
        return config(f"source={json.dumps(section)}", f"out={tmp_path}/{out}")

    return make


@pytest.mark.parametrize("kind", ["imagefolder", "parquets", "saved"])
def test_a_local_dataset_arrives_in_its_order(kind, request, hub_config, picture, read_import):
    c = hub_config(request.getfixturevalue(kind))
    done = importing.run(c)
    assert (done.samples, done.shards, done.left_out) == (ROWS, 3, {})
    found = read_import(c)
    assert list(found.samples) == [f"{i:09d}" for i in range(ROWS)]
    assert found.captions == [f"picture {i}" for i in range(ROWS)]
    assert [parts["png"] for parts in found.samples.values()] == [picture(i) for i in range(ROWS)]
    assert json.loads(found.samples["000000003"]["json"])["row"] == 3


def test_a_stopped_import_goes_on_in_mid_stream(parquets, hub_config, read_import):
    whole, c = hub_config(parquets, out="whole"), hub_config(parquets)
    importing.run(whole)
    importing.run(c)
    Path(importing.manifest_path(c)).unlink()
    Path(c.tars, "00001.json").unlink()
    assert importing.run(c).fresh
    for path in Path(whole.tars).iterdir():
        assert path.read_bytes() == Path(c.tars, path.name).read_bytes()


def test_the_first_samples_are_enough_when_so_many_are_asked_for(parquets, hub_config, read_import):
    c = hub_config(parquets, samples=12)
    assert importing.run(c).samples == 12
    assert read_import(c).captions == [f"picture {i}" for i in range(12)]


def test_another_split_and_column_can_be_chosen(saved, hub_config, read_import):
    c = hub_config(saved, split="test", caption_column="text")
    importing.run(c)
    assert read_import(c).captions == ["picture 3"]


def test_rows_that_cannot_be_used_are_left_out(tmp_path, picture, read_import, hub_config):
    rows = [(picture(1), "good"), (picture(2), None), (b"<html>", "page"), (None, "nothing")]
    table = pa.table({"image": [r[0] for r in rows], "caption": [r[1] for r in rows]})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "a.parquet")
    c = hub_config(tmp_path / "set")
    importing.run(c)
    found = read_import(c)
    assert found.captions == ["good"]
    assert {f["where"]: f["reason"] for f in found.failures} == {
        "row 1": "no_caption",
        "row 2": "not_an_image",
        "row 3": "no_image",
    }


def test_a_dataset_that_changed_is_imported_anew(parquets, hub_config):
    c = hub_config(parquets)
    importing.run(c)
    assert not importing.run(c).fresh
    (parquets / "train-00001-of-00002.parquet").unlink()
    assert importing.run(c).samples == 13


def test_slices_can_be_read_in_any_order(parquets):
    source = hub.HubSource(SourceConfig(name="hub", path=str(parquets), shard_samples=10), 0)
    keys = [[row.key for row in source.read(part)] for part in (Slice(20, 30), Slice(0, 10))]
    assert keys == [[f"{i:09d}" for i in part] for part in (range(20, 25), range(10))]


def test_columns_of_other_kinds_are_told(tmp_path):
    table = pa.table({"image": ["http://a/b.png"], "caption": [["one", "two"]]})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "a.parquet")
    source = hub.HubSource(SourceConfig(name="hub", path=str(tmp_path / "set")), 0)
    (bad,) = source.read(Slice(0, 10))
    assert isinstance(bad, Bad)
    assert bad.detail == "`caption` is no text: ['one', 'two']"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"split": "val"},
            r"cannot open dataset .*Bad split: val.*\n\nhint: check source.path, so",
        ),
        ({"caption_column": "alt"}, r"has no column `alt`; it has `image`, `caption`\n\nhint: say"),
        ({"image_column": "img"}, r"has no column `img`"),
    ],
)
def test_a_split_or_column_that_is_not_there_is_an_error(parquets, hub_config, keys, told):
    with pytest.raises(ConfigError, match=told):
        importing.run(hub_config(parquets, **keys))


def test_a_split_that_was_not_saved_is_an_error(saved, hub_config):
    with pytest.raises(
        ConfigError, match=r"has no split 'val'; it has train, test\n\nhint: say whi"
    ):
        importing.run(hub_config(saved, split="val"))


def test_a_folder_that_is_not_there_is_no_name_of_the_hub(hub_config):
    with pytest.raises(ConfigError, match=r"there is no folder `\./nowhere`"):
        importing.run(hub_config("./nowhere"))


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(hub_config, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        StorageError, match=r"cannot read dataset `owner/name`: .*(\n|.)*hint: check the name and t"
    ):
        importing.run(hub_config("owner/name"))


def test_without_the_package_it_is_told_what_to_install(hub_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=r"needs the package `datasets`(.|\n)*pip install 'imagen-c"
    ):
        importing.run(hub_config("owner/name"))
    monkeypatch.undo()
    importlib.import_module("datasets")


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/a.png", "s3://bucket/a.png"])
def test_a_row_cannot_make_this_machine_read_from_elsewhere(tmp_path, place):
    table = pa.table({"image": [{"bytes": None, "path": place}], "caption": ["a"]})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "a.parquet")
    source = hub.HubSource(SourceConfig(name="hub", path=str(tmp_path / "set")), 0)
    (bad,) = source.read(Slice(0, 10))
    assert isinstance(bad, Bad)
    assert (bad.reason, bad.detail) == ("foreign_path", f"`{place}` is no part of the dataset")


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "file:///etc/passwd::hf://datasets/owner/name",  # fsspec opens the first link
        "/etc/passwd::hf://datasets/owner/name",
        "http://127.0.0.1:1/a::hf://datasets/owner/name",
        "simplecache::hf://datasets/owner/name/a.png",
        "zip://a.png::http://127.0.0.1:1/a.zip::hf://datasets/owner/name",
        "zip://a.png::/data/a.zip",
    ],
)
def test_rows_of_the_hub_are_read_from_the_hub_alone(place):
    with pytest.raises(hub.BadRowError, match="foreign_path"):
        hub._image_bytes({"path": place, "bytes": None}, "image", None)


@pytest.mark.parametrize("links", ["", "zip://a.png::", "zip://a.png::gzip://a.zip::"])
def test_rows_of_the_hub_may_be_in_archives_there(links):
    place = f"{links}hf://datasets/owner/name@main/a.zip"
    assert hub._checked(place, None) == place


def test_rows_of_a_local_dataset_are_read_from_below_its_folder_alone(
    tmp_path, picture, hub_config, read_import, site
):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(9))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "a.bin").write_bytes(picture(1))
    with zipfile.ZipFile(folder / "a.bin.zip", "w") as archive:
        archive.writestr("b.png", picture(2))
    (folder / "damaged.bin.zip").write_bytes(b"PK")
    (folder / "folder.bin").mkdir()
    good = [f"{folder}/a.bin", f"zip://b.png::{folder}/a.bin.zip"]
    foreign = [
        *(f"{tmp_path}/secret.png", f"{folder}/link.png", f"{folder}/../secret.png"),
        *(f"{site.address}/a::{folder}/a.bin", "hf://datasets/a/b/c.png", "bad\0name.png"),
        *("secret.png", f"{tmp_path}/set2/a.png", f"file://{tmp_path}/secret.png"),
    ]
    missing = [f"{folder}/gone.png", f"zip://gone.png::{folder}/a.bin.zip"]
    broken = [f"zip://b.png::{folder}/damaged.bin.zip", f"{folder}/folder.bin"]
    places = [*good, *foreign, *missing, *broken]
    rows = [{"image": {"bytes": None, "path": p}, "caption": p} for p in places]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    c = hub_config(f"{folder}")
    done = importing.run(c)
    assert done.left_out == {"foreign_path": 9, "missing_file": 2, "unreadable_file": 2}
    found = read_import(c)
    assert [parts["png"] for parts in found.samples.values()] == [picture(1), picture(2)]
    assert [f["reason"] for f in found.failures] == [
        *["foreign_path"] * 9,
        *["missing_file"] * 2,
        *["unreadable_file"] * 2,
    ]
    assert site.asked == []


def test_a_tilde_is_a_name_and_not_the_home_of_who_imports(tmp_path, picture, monkeypatch):
    folder, home = tmp_path / "set", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "train.parquet").touch()
    with zipfile.ZipFile(home / "a.zip", "w") as archive:
        archive.writestr("b.png", picture(2))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(folder)
    with pytest.raises(hub.BadRowError, match="missing_file"):
        hub._image_bytes({"path": "zip://b.png::~/a.zip", "bytes": None}, "image", str(folder))
