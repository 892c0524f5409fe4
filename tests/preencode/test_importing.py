import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from imagen import storage
from imagen.data import digits, index, tars
from imagen.errors import ConfigError
from preencode import importing
from preencode.sources import generated

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parents[2] / "pipeline" / "configs" / "digits.yaml"
DEMO = "5dc4e09ec7affe31afe9b5448c83bb0eb3329db298396f55352769650213eab8"
SHARDS = [f"{i:05d}.{suffix}" for i in range(3) for suffix in ("json", "tar")]


def files(folder: str) -> dict[str, bytes]:
    return {name: storage.get(storage.join(folder, name)) for name in storage.listdir(folder)}


@pytest.fixture
def shapes(config, tmp_path):
    """A config of 10 small scenes in 4 shards, in a folder of its own."""

    def make(*overrides, out="run"):
        section = "{name: shapes, samples: 10, size: 32, shard_samples: 3}"
        return config(f"source={section}", f"out={tmp_path}/{out}", *overrides)

    return make


def test_all_digits_arrive_in_shards_of_equal_size(config):
    c = config()
    done = importing.run(c)
    assert (done.samples, done.shards, done.fresh) == (1797, 8, True)
    keys, captions, sizes, hashed = set(), [], [], hashlib.sha256()
    for tar in importing.list_tars(c):
        content = tars.open_tar(tar.path)
        for member in tars.list_members(content, tar.path).members:
            data = content[member.offset : member.offset + member.size]
            pixels = Image.open(io.BytesIO(data)).tobytes() if "png" in member.name else data
            hashed.update(member.name.encode() + pixels)
        found = index.index_tar(content, tar.path, 0.1)
        assert found.bad == []
        assert found.sides == {"32": len(found.keys)}
        keys |= set(found.keys)
        captions += found.captions
        sizes.append(len(found.keys))
    assert len(keys) == 1797
    assert max(sizes) - min(sizes) <= 1
    said = {(digits.digit_of(c), c) for c in captions}
    assert len(said) == 10 * len(digits.PHRASINGS)  # every digit in every phrasing
    assert hashed.hexdigest() == DEMO  # what published figures of the demo were measured on


def test_an_import_of_before_shards_had_manifests_is_still_done(config):
    c = config("source.shards=2")
    importing.run(c)
    body = json.loads(storage.get(importing.manifest_path(c)))
    kept = {key: body[key] for key in ("format", "source", "seed", "samples", "files")}
    Path(importing.manifest_path(c)).write_text(json.dumps(kept))
    for name in SHARDS[:4:2]:
        storage.delete(storage.join(c.tars, name))
    assert (importing.run(c).fresh, len(importing.list_tars(c))) == (False, 2)


def test_captions_say_the_digit_of_their_image():
    from sklearn.datasets import load_digits

    targets = load_digits().target
    for key, _, caption in generated.digit_samples(0):
        assert digits.digit_of(caption) == targets[int(key.removeprefix("digit"))]


def test_importing_twice_does_nothing(shapes):
    c = shapes()
    importing.run(c)
    before = {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)}
    again = importing.run(c)
    assert (again.fresh, again.samples, again.shards) == (False, 10, 4)
    assert {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)} == before


def test_the_seed_alone_decides_the_bytes_also_on_another_storage(shapes, tmp_path):
    importing.run(shapes())
    importing.run(shapes(f"out=memory://{tmp_path.name}"))
    importing.run(shapes("seed=1", out="other"))
    first = files(f"{tmp_path}/run/data")
    assert files(f"memory://{tmp_path.name}/data") == first
    other = files(f"{tmp_path}/other/data")
    assert all(other[name] != first[name] for name in first)


def test_an_import_that_was_stopped_is_done_again_to_the_same_bytes(shapes):
    c = shapes()
    importing.run(c)
    whole = files(c.tars)
    storage.delete(importing.manifest_path(c))  # as after a kill: the manifest is the last file
    storage.delete(storage.join(c.tars, "00003.tar"))
    with pytest.raises(ConfigError, match=r"no finished import in .*\n\nhint: import first: `pyth"):
        importing.list_tars(c)
    assert importing.run(c).fresh
    assert files(c.tars) == whole


def test_a_killed_import_goes_on_to_the_same_bytes_and_does_nothing_twice(shapes):
    many = ("source.samples=120", "source.shard_samples=2")
    c, clean = shapes(*many), shapes(*many, out="clean")
    section = "source={name: shapes, samples: 120, size: 32, shard_samples: 2}"
    words = ["import", "shapes", str(CONFIG), f"out={c.out}", section]
    process = subprocess.Popen(
        [sys.executable, "-m", "preencode", *words], cwd=CONFIG.parents[2], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not os.path.exists(f"{c.tars}/00001.tar"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not os.path.exists(importing.manifest_path(c))  # it was in mid-run
    before = {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)}
    assert 1 <= len(tars_of(c.tars)) < 60
    finished = [n for n in before if n.endswith(".json") and n.replace("json", "tar") in before]
    assert importing.run(c).fresh
    importing.run(clean)
    assert len(tars_of(c.tars)) == 60
    assert {n: d for n, d in files(c.tars).items() if n != ".lock"} == files(clean.tars)
    after = {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)}
    assert finished
    assert {n: after[n] for n in finished} == {n: before[n] for n in finished}


class Died(BaseException):
    """The process is gone."""


def test_an_import_that_dies_before_any_of_its_writes_ends_in_the_same_bytes(shapes, monkeypatch):
    whole, real, calls = shapes(out="whole"), storage.put, []

    def counted(path, data, **more):
        calls.append(path)
        return real(path, data, **more)

    monkeypatch.setattr(storage, "put", counted)
    importing.run(whole)
    writes = len(calls)
    assert writes == 1 + 4 * 2 + 1  # that it began, a tar and a manifest each, then that of all
    for last in range(writes):

        def dying(path, data, left=[last], **more):  # noqa: B006 - one list a function
            if not left[0]:
                raise Died
            left[0] -= 1
            return real(path, data, **more)

        c = shapes(out=f"died{last}")
        monkeypatch.setattr(storage, "put", dying)
        with pytest.raises(Died):
            importing.run(c)
        assert importing.done(c) is None
        calls.clear()
        monkeypatch.setattr(storage, "put", counted)
        assert importing.run(c).fresh
        assert files(c.tars) == files(whole.tars)
        again = 1 - last % 2 if last else 0  # a tar without its manifest is done again
        assert len(calls) == writes - last + again


def test_a_shard_that_went_missing_is_the_only_one_that_is_done_again(shapes):
    c = shapes()
    importing.run(c)
    whole = files(c.tars)
    before = {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)}
    storage.delete(storage.join(c.tars, "00002.tar"))
    assert importing.done(c) is None
    assert importing.run(c).fresh
    assert files(c.tars) == whole
    after = {e.name: e.stat().st_mtime_ns for e in os.scandir(c.tars)}
    assert {n for n in after if after[n] != before[n]} == {
        "00002.tar",
        "00002.json",
        "manifest.json",
    }


def test_a_damaged_manifest_of_a_shard_is_replaced(shapes):
    c = shapes()
    importing.run(c)
    whole = files(c.tars)
    Path(c.tars, "00001.json").write_text("{")
    storage.delete(importing.manifest_path(c))
    importing.run(c)
    assert files(c.tars) == whole


def test_an_import_with_other_settings_leaves_nothing_of_one_that_was_stopped(shapes):
    importing.run(shapes("source.shard_samples=9", out="clean"))
    c = shapes()
    importing.run(c)
    storage.delete(importing.manifest_path(c))
    other = shapes("source.shard_samples=9")
    importing.run(other)
    assert files(other.tars) == files(shapes(out="clean").tars)


def test_a_plan_tells_what_is_left_and_touches_nothing(shapes):
    c = shapes()
    assert importing.plan(c) == importing.Plan(PAIRS, 10, None, 4, 0)
    assert not os.path.exists(c.out)
    importing.run(c)
    storage.delete(importing.manifest_path(c))
    storage.delete(storage.join(c.tars, "00001.json"))
    before = files(c.tars)
    assert importing.plan(c) == importing.Plan(PAIRS, 10, None, 4, 3)
    assert files(c.tars) == before
    importing.run(c)
    assert importing.plan(c).finished == 4


PAIRS = "shapes, 4 of 40 (colour, shape) pairs held out"


def tars_of(folder: str) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name.endswith(".tar")}


def test_an_import_sweeps_what_a_killed_one_left(shapes):
    c = shapes("source.shard_samples=5")
    storage.put(f"{c.tars}/00000.tar{storage.TEMP_MARK}1-old", b"half a tar")
    os.utime(f"{c.tars}/00000.tar{storage.TEMP_MARK}1-old", (0, 0))
    importing.run(c)
    assert sorted(os.listdir(c.tars)) == [*SHARDS[:4], "manifest.json"]


@pytest.mark.parametrize("change", ["seed=5", "source.samples=9", "source.heldout_pairs=0.2"])
def test_an_import_with_other_settings_is_not_taken_for_this_one(shapes, change):
    importing.run(shapes())
    with pytest.raises(
        ConfigError, match=r"of this source and seed\n\nhint: import first: `python -m preencode im"
    ):
        importing.list_tars(shapes(change))


def test_the_import_of_another_project_can_be_used_in_place(shapes, config, tmp_path):
    first = shapes()
    importing.run(first)
    second = config(f"out={tmp_path}/second", f"data.tars={first.tars}", "seed=5")
    assert importing.list_tars(second) == importing.list_tars(first)


def test_other_settings_replace_an_import_and_leave_no_tar_of_it(shapes):
    importing.run(shapes())
    fewer = shapes("source.shard_samples=4")
    assert importing.done(fewer) is None
    assert importing.run(fewer).fresh
    assert storage.listdir(fewer.tars) == [*SHARDS, "manifest.json"]


def test_a_damaged_manifest_is_replaced(shapes):
    c = shapes()
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


def test_the_manifest_lists_every_tar_with_its_checksum(shapes):
    c = shapes()
    importing.run(c)
    body = json.loads(storage.get(importing.manifest_path(c)))
    assert body["format"] == "imagen/source/1"
    for name, entry in body["files"].items():
        data = storage.get(storage.join(c.tars, name))
        assert (len(data), storage.crc32c(data)) == (entry["bytes"], entry["crc32c"])


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("members", ["", "members={}"])
def test_a_seed_out_of_range_is_refused_with_members_and_without(config, seed, members):
    with pytest.raises(ConfigError, match=r"seed .* is not in \[0, 2\^32\)"):
        config(f"seed={seed}", *[members][: bool(members)])


def test_a_config_without_any_data_is_an_error(config):
    with pytest.raises(ConfigError, match=r"there is no data: neither `source` nor `data\.tars`"):
        config("source=null")


def test_a_typo_in_the_source_section_is_an_error(config):
    with pytest.raises(
        ConfigError, match=r"unknown key `source\.shard`(.|\n)*did you mean `shards`"
    ):
        config("source.shard=3")
