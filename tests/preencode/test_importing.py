import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen import storage
from imagen.data import digits, index, tars
from imagen.errors import ConfigError
from preencode import importing

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parents[2] / "pipeline" / "configs" / "digits.yaml"


def files(folder: str) -> dict[str, bytes]:
    return {name: storage.get(storage.join(folder, name)) for name in storage.listdir(folder)}


def test_all_digits_arrive_in_shards_of_equal_size(config):
    c = config()
    done = importing.run(c)
    assert (done.samples, done.shards, done.fresh) == (1797, 8, True)
    keys, captions, sizes = set(), [], []
    for tar in importing.list_tars(c):
        found = index.index_tar(tars.open_tar(tar.path), tar.path, 0.1)
        assert found.bad == []
        assert found.sides == {"32": len(found.keys)}
        keys |= set(found.keys)
        captions += found.captions
        sizes.append(len(found.keys))
    assert len(keys) == 1797
    assert max(sizes) - min(sizes) <= 1
    said = {(digits.digit_of(c), c) for c in captions}
    assert len(said) == 10 * len(digits.PHRASINGS)  # every digit in every phrasing


def test_captions_say_the_digit_of_their_image():
    from sklearn.datasets import load_digits

    targets = load_digits().target
    for key, _, caption in importing.digit_samples(0):
        assert digits.digit_of(caption) == targets[int(key.removeprefix("digit"))]


def test_importing_twice_does_nothing(config):
    c = config()
    importing.run(c)
    before = {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)}
    again = importing.run(c)
    assert (again.fresh, again.samples, again.shards) == (False, 1797, 8)
    assert {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)} == before


def test_the_seed_alone_decides_the_bytes_also_on_another_storage(config, tmp_path):
    importing.run(config())
    importing.run(config(f"out=memory://{tmp_path.name}"))
    importing.run(config(f"out={tmp_path}/other", "seed=1"))
    first = files(f"{tmp_path}/run/data")
    assert files(f"memory://{tmp_path.name}/data") == first
    other = files(f"{tmp_path}/other/data")
    assert all(other[name] != first[name] for name in first)


def test_an_import_that_was_stopped_is_done_again_to_the_same_bytes(config, tmp_path):
    c = config()
    importing.run(c)
    whole = files(c.tars)
    storage.delete(importing.manifest_path(c))  # as after a kill: the manifest is the last file
    storage.delete(storage.join(c.tars, "00005.tar"))
    with pytest.raises(ConfigError, match=r"no finished import in .*\n\nhint: import first: `pyth"):
        importing.list_tars(c)
    assert importing.run(c).fresh
    assert files(c.tars) == whole


def test_a_killed_import_is_done_again_to_the_same_bytes(config, tmp_path):
    c, clean = config("source.shards=500"), config(f"out={tmp_path}/clean", "source.shards=500")
    words = ["import", "digits", str(CONFIG), f"out={c.out}", "source.shards=500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "preencode", *words], cwd=CONFIG.parents[2], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not os.path.exists(f"{c.tars}/00000.tar"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not os.path.exists(importing.manifest_path(c))  # it was in mid-run
    assert 1 <= len(tars_of(c.tars)) < 500
    assert importing.run(c).fresh
    importing.run(clean)
    assert len(tars_of(c.tars)) == 500
    assert tars_of(c.tars) == tars_of(clean.tars)
    assert storage.get(importing.manifest_path(c)) == storage.get(importing.manifest_path(clean))


def tars_of(folder: str) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name.endswith(".tar")}


def test_an_import_sweeps_what_a_killed_one_left(config):
    c = config("source.shards=2")
    storage.put(f"{c.tars}/00000.tar{storage.TEMP_MARK}1-old", b"half a tar")
    os.utime(f"{c.tars}/00000.tar{storage.TEMP_MARK}1-old", (0, 0))
    importing.run(c)
    assert sorted(os.listdir(c.tars)) == ["00000.tar", "00001.tar", "manifest.json"]


@pytest.mark.parametrize("change", ["seed=5", "source.shards=3"])
def test_an_import_with_other_settings_is_not_taken_for_this_one(config, change):
    importing.run(config("source.shards=2"))
    with pytest.raises(
        ConfigError, match=r"of this source and seed\n\nhint: import first: `python -m preencode im"
    ):
        importing.list_tars(config("source.shards=2", change))


def test_the_import_of_another_project_can_be_used_in_place(config, tmp_path):
    first = config("source.shards=2")
    importing.run(first)
    second = config(f"out={tmp_path}/second", f"data.tars={first.tars}", "seed=5")
    assert importing.list_tars(second) == importing.list_tars(first)


def test_other_settings_replace_an_import_and_leave_no_tar_of_it(config):
    importing.run(config())
    fewer = config("source.shards=3")
    assert importing.done(fewer) is None
    assert importing.run(fewer).fresh
    assert storage.listdir(fewer.tars) == ["00000.tar", "00001.tar", "00002.tar", "manifest.json"]


def test_a_damaged_manifest_is_replaced(config):
    c = config()
    importing.run(c)
    whole = files(c.tars)
    Path(importing.manifest_path(c)).write_text("{")
    assert importing.run(c).fresh
    assert files(c.tars) == whole


def test_tars_in_place_are_never_imported_over(config, tars):
    c = config(f"data.tars={tars(1, 3)}")
    with pytest.raises(ConfigError, match="the tars there are used in place, not imported"):
        importing.run(c)
    assert [t.name for t in importing.list_tars(c)] == ["00000"]


def test_the_manifest_lists_every_tar_with_its_checksum(config):
    c = config("source.shards=2")
    importing.run(c)
    body = json.loads(storage.get(importing.manifest_path(c)))
    assert body["format"] == "imagen/source/1"
    for name, entry in body["files"].items():
        data = storage.get(storage.join(c.tars, name))
        assert (len(data), storage.crc32c(data)) == (entry["bytes"], entry["crc32c"])


def test_a_config_without_any_data_is_an_error(config):
    with pytest.raises(ConfigError, match=r"there is no data: neither `source` nor `data\.tars`"):
        config("source=null")


def test_a_typo_in_the_source_section_is_an_error(config):
    with pytest.raises(
        ConfigError, match=r"unknown key `source\.shard`(.|\n)*did you mean `shards`"
    ):
        config("source.shard=3")
