import pytest

from imagen import storage
from imagen.errors import ConfigError, ShardError
from preencode import importing


@pytest.fixture
def shapes(config):
    """A config of 10 small scenes in 4 shards."""
    section = "{name: shapes, samples: 10, size: 32, shard_samples: 3}"
    return lambda: config(f"source={section}")


def test_tars_of_others_in_the_folder_of_an_import_are_neither_replaced_nor_deleted(shapes):
    c = shapes()
    own = {name: f"{name} of mine".encode() for name in ("00000.tar", "00001.tar", "00007.json")}
    for name, data in own.items():
        storage.put(storage.join(c.tars, name), data)
    with pytest.raises(
        ConfigError,
        match=r"holds 00000\.tar, 00001\.tar, 00007\.json, which no import(.|\n)*data\.t",
    ):
        importing.run(c)
    assert {n: storage.get(storage.join(c.tars, n)) for n in storage.listdir(c.tars)} == own


@pytest.mark.parametrize(
    "gone",
    [
        ["manifest.json"],
        ["manifest.json", "00003.tar"],
        ["00003.tar"],
        ["00001.json", "00001.tar"],
        ["manifest.json", "00000.json", "00001.json", "00002.json", "00003.json", "00001.tar"],
    ],
)
def test_an_unfinished_import_is_not_used_in_place(shapes, config, tmp_path, gone):
    c = shapes()
    importing.run(c)
    if len(gone) > 2:
        storage.put(storage.join(c.tars, "begun.json"), b'{"format": "imagen/source-begun/1"}')
    for name in gone:
        storage.delete(storage.join(c.tars, name))
    second = config(f"out={tmp_path}/second", f"data.tars={c.tars}")
    with pytest.raises(
        ShardError,
        match=r"holds an import that is not finished, or lacks files\n\nhint: run the im",
    ):
        importing.list_tars(second)


def test_tars_of_others_are_used_in_place_whatever_json_is_beside_them(config, tars):
    folder = tars(2, 3)
    (folder / "manifest.json").write_bytes(b"[1]")
    (folder / "00000.json").write_bytes(b'{"format": "mine"}')
    (folder / "00001.json").write_bytes(b"\xff")
    (folder / "00000_stats.json").write_bytes(b'{"successes": 3}')
    (folder / "00001_stats.json").write_bytes(b'{"successes": 3}')
    assert len(importing.list_tars(config(f"data.tars={folder}"))) == 2
