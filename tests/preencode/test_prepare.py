import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen import storage
from imagen.data import images, index, prepared, resize
from imagen.data import tars as tarfiles
from imagen.data.prepared import Prepared
from imagen.errors import ConfigError, ShardError, StorageError
from imagen.project import absolute
from preencode import prepare, prepare_report, prepare_shard
from preencode.commands import prepare as command
from runtime import log, state

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "pipeline" / "configs" / "digits.yaml")
COLOUR = ("members.base.network.channels=3", "members.sr1.network.channels=3")
WIDE = ("members.base.size=[8,16]", "members.sr1.size=[32,64]")


def picture(seed: int, size: tuple[int, int] = (90, 70), mode: str = "RGB") -> Image.Image:
    """Smooth shapes with some noise: a lossless file of it is larger than a JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = np.clip(pixels + rng.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encoded(image: Image.Image, form: str = "png", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(seed), "jpeg", quality=97, exif=exif)


KINDS = {
    "png": encoded(picture(1)),
    "jpeg": encoded(picture(2, (400, 300)), "jpeg", quality=97),
    "grey": encoded(picture(3, mode="L")),
    "turned": turned(4),
    "cmyk": encoded(picture(5, mode="CMYK"), "jpeg", quality=97),
    "palette": encoded(picture(6, mode="P")),
    "transparent": encoded(picture(7, mode="RGBA").rotate(30)),
    "sixteen": encoded(Image.fromarray(np.arange(80 * 80, dtype=np.uint16).reshape(80, 80) * 9)),
    "webp": encoded(picture(8), "webp", lossless=True),
}


def plain(count: int, prefix: str = "s") -> list[tuple[str, dict[str, bytes]]]:
    return [
        (
            f"{prefix}{i:03d}",
            {"png": encoded(picture(i, (48, 40))), "txt": f"{prefix} {i}".encode()},
        )
        for i in range(count)
    ]


def index_tars(config, heldout=0.1):
    """Do what the encoding stage does for the index."""
    config = absolute(config)
    bodies = []
    for tar in tarfiles.list_tars(config.tars):
        found = index.index_tar(tarfiles.open_tar(tar.path), tar.path, heldout)
        where = prepared.relative_tar(config.index, tar.path)
        facts = {"tar": where, "tar_crc32c": storage.crc32c(storage.get(tar.path))}
        bodies.append(index.publish(config.index, tar.name, found, facts))
    prepared.publish(config.index, bodies, heldout)


def prepare_all(config) -> prepare.Result:
    """Do what the driver does, in this process."""
    job, source = prepare.make_job(absolute(config))
    left = prepare.work_left(job, source.shards)
    result = prepare.Result(job, len(source.shards))
    unfinished = prepare.unfinished_members(job, source, left)
    prepare.retract(unfinished)
    for todo in left:
        result.add(prepare_shard.process(job, todo))
    prepare.finish(result, source, unfinished)
    result.seconds = 1.0
    return result


def opened(config, member: str) -> tuple[Prepared, Prepared]:
    """Return the source and the prepared images of a member."""
    config = absolute(config)
    source = Prepared.open(config.index)
    made = resize.open_set(config.prepared_dir(member), source, config.target(member))
    return source, made


def written(folder: str | Path) -> dict[str, bytes]:
    """All files below a folder, without locks and what killed writers leave until it is swept."""
    found = [p for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"]
    named = {str(p.relative_to(folder)): p for p in found if storage.TEMP_MARK not in p.name}
    return {name: path.read_bytes() for name, path in named.items()}


@pytest.fixture
def project(config, tmp_path):
    """A config with data.prepare and indexed tars: `project({"00000": samples}, overrides)`."""

    def make(shards, *overrides):
        for name, samples in shards.items():
            path = tmp_path / "tars" / f"{name}.tar"
            storage.put(str(path), tarfiles.write_tar(samples))
        made = config(f"data.tars={tmp_path}/tars", "data.prepare=true", *overrides)
        index_tars(made)
        return made

    return make


def kinds():
    return [(name, {"png": data, "txt": name.encode()}) for name, data in KINDS.items()]


@pytest.mark.parametrize("overrides", [(), COLOUR, WIDE, (*COLOUR, *WIDE)])
def test_a_member_gets_the_very_pixels_of_the_source(project, overrides):
    c = project({"00000": kinds()}, *overrides)
    prepare_all(c)
    for name, member in c.members.items():
        source, made = opened(c, name)
        channels = member.network.channels
        for row in range(len(KINDS)):
            (wanted,) = images.decode(source.image(0, row), (member.shape,), channels)
            (found,) = images.decode(made.image(0, row), (member.shape,), channels)
            assert np.array_equal(found, wanted), made.key(0, row)
        height, width = member.shape
        sizes = {Image.open(io.BytesIO(made.image(0, r))).size for r in range(len(KINDS))}
        assert (width, height) in sizes
        if name == "base":  # all are smaller as files: none is kept
            assert sizes == {(width, height)}


def test_colour_is_lossless_webp_and_grey_is_png(project):
    forms = {(): {"PNG"}, COLOUR: {"WEBP"}}
    for overrides, wanted in forms.items():
        c = project({"00000": kinds()}, *overrides)
        prepare_all(c)
        _, made = opened(c, "base")
        found = {Image.open(io.BytesIO(made.image(0, r))).format for r in range(len(KINDS))}
        assert found == wanted


NAMES = ["plain", "in/a/folder", "a.b/dotted", "ümlaut", "x" * 60, "long/" + "y" * 140, "\udcff"]


def odd_samples():
    samples = [
        (name, {"png": encoded(picture(i)), "txt": f" \n caption {i} ü \t".encode()})
        for i, name in enumerate(NAMES)
    ]
    samples.insert(2, ("no-image", {"txt": b"left out"}))
    samples.insert(4, ("broken", {"jpg": b"no image", "txt": b"left out"}))
    samples.append(("empty", {"png": encoded(picture(9)), "txt": b""}))
    body = json.dumps({"caption": " of a json \u2028", "sha256": "0"}).encode()
    samples.append(("json", {"jpg": encoded(picture(10), "jpeg", quality=97), "json": body}))
    return samples


def test_rows_keys_captions_and_split_are_those_of_the_source(project):
    c = project({"00000": odd_samples(), "b": plain(30)})
    prepare_all(c)
    for member in c.members:
        source, made = opened(c, member)
        assert [s.digest for s in made.shards] == [s.digest for s in source.shards]
        assert made.keys(0).tolist() == source.keys(0).tolist()
        assert {b"\xff", b"in/a/folder"} <= set(made.keys(0).tolist())
        for shard in (0, 1):
            rows = range(source.shards[shard].rows)
            told = [source.caption(shard, r) for r in rows]
            assert [made.caption(shard, r) for r in rows] == told
            for split in ("train", "heldout"):
                wanted = source.rows(shard, split).tolist()
                assert made.rows(shard, split).tolist() == wanted
        assert made.shards[1].heldout > 0


def test_images_that_a_member_cannot_use_stay_and_are_counted_by_reason(project):
    whole, torn = encoded(picture(1), "jpeg", quality=97), encoded(picture(3))
    samples = [
        ("small", {"png": encoded(picture(2, (20, 20))), "txt": b"c"}),
        ("cut", {"jpg": whole[: len(whole) // 2], "txt": b"c"}),
        ("torn", {"png": torn[: len(torn) // 2], "txt": b"c"}),
        *plain(3),
    ]
    c = project({"00000": samples})
    result = prepare_all(c)
    assert result.bodies["base"]["kept"] == {"unreadable": 2}
    assert result.bodies["sr1"]["kept"] == {"too_small": 1, "unreadable": 2}
    for member, rows in (("base", (1, 2)), ("sr1", (0, 1, 2))):
        source, made = opened(c, member)
        assert [made.image(0, r) for r in rows] == [source.image(0, r) for r in rows]
        assert made.image(0, 3) != source.image(0, 3)
    told = "\n".join(prepare_report.summary_lines(result))
    assert "1 are too small and stay as they are: training gives them no weight" in told
    assert "2 cannot be decoded and stay as they are" in told
    assert "unreadable      cut: not a readable image: OSError: image file is truncated" in told
    assert "unreadable      torn: not a readable image: " in told


def test_a_file_that_a_new_one_would_not_make_smaller_stays(project):
    small = encoded(picture(0, (36, 36)), "jpeg", quality=30)
    c = project({"00000": [("a", {"jpg": small, "txt": b"c"}), *plain(1)]}, *COLOUR)
    result = prepare_all(c)
    source, made = opened(c, "sr1")
    assert made.image(0, 0) == small
    assert made.image(0, 1) != source.image(0, 1)
    assert result.bodies["sr1"]["kept"] == {"no_larger": 1}
    size = result.bodies["sr1"]["bytes"]
    assert size["source"] == sum(len(source.image(0, r)) for r in (0, 1))
    assert size["prepared"] == sum(len(made.image(0, r)) for r in (0, 1)) < size["source"]


def test_the_same_input_gives_the_same_bytes_anywhere(project, tmp_path):
    shards = {"00000": odd_samples(), "00001": plain(4)}
    prepare_all(project(shards))
    other = project(shards, f"out={tmp_path}/elsewhere")
    prepare_all(other)
    first = written(tmp_path / "run" / "prepared")
    assert len(first) == 2 * (1 + 1 + 2 * 5)
    assert written(tmp_path / "elsewhere" / "prepared") == first


def test_a_stop_at_any_write_is_continued_to_the_same_bytes(project, tmp_path, monkeypatch):
    c = project({"00000": plain(2)})
    prepare_all(c)
    folder = tmp_path / "run" / "prepared"
    clean = written(folder)
    put = storage.put

    class Stop(Exception):
        pass

    for stop_after in range(len(clean)):
        shutil.rmtree(folder)
        left = [stop_after]

        def limited(path, data, left=left, **options):
            if not left[0]:
                raise Stop
            left[0] -= 1
            return put(path, data, **options)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "put", limited)
            with pytest.raises(Stop):
                prepare_all(c)
        with pytest.raises(ShardError, match="no finished prepared images"):
            opened(c, "sr1")
        prepare_all(c)
        assert written(folder) == clean


def test_a_tar_is_read_once_for_all_members(project, monkeypatch):
    c = project({"00000": plain(2), "00001": plain(2, "t")})
    read, open_tar = [], tarfiles.open_tar
    monkeypatch.setattr(tarfiles, "open_tar", lambda path: read.append(path) or open_tar(path))
    prepare_all(c)
    assert sorted(map(storage.name, read)) == ["00000.tar", "00001.tar"]


def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(resize, "resize", fail)


def test_only_the_member_whose_size_changed_is_done_again(project, tmp_path):
    shards = {"00000": plain(3), "00001": plain(2, "t")}
    prepare_all(project(shards))
    before = {p: os.stat(p).st_mtime_ns for p in (tmp_path / "run/prepared/base").rglob("*")}
    c = project(shards, "members.sr1.size=16")
    with pytest.raises(ShardError, match=r"are stale: size was \[32, 32\], is \[16, 16\]"):
        opened(c, "sr1")
    job, source = prepare.make_job(c)
    assert {t.members for t in prepare.work_left(job, source.shards)} == {("sr1",)}
    assert prepare.prepare_state(c).status == "stale"
    assert prepare_all(c).images == 5
    assert {p: os.stat(p).st_mtime_ns for p in before} == before
    _, made = opened(c, "sr1")
    assert Image.open(io.BytesIO(made.image(0, 0))).size == (16, 16)


def test_only_the_shard_whose_images_changed_is_done_again(project, tmp_path):
    c = project({"00000": plain(3), "00001": plain(2, "t")})
    prepare_all(c)
    key, parts = plain(1, "t")[0]
    changed = [(key, {**parts, "png": encoded(picture(50))}), *plain(2, "t")[1:]]
    c = project({"00001": changed})
    with pytest.raises(ShardError, match="are stale: source was"):
        opened(c, "base")
    job, source = prepare.make_job(c)
    assert [t.shard.name for t in prepare.work_left(job, source.shards)] == ["00001"]
    prepare_all(c)
    source, made = opened(c, "base")
    (wanted,) = images.decode(source.image(1, 0), (8,), 1)
    assert np.array_equal(images.decode(made.image(1, 0), (8,), 1)[0], wanted)


def test_another_split_changes_the_index_and_decodes_nothing(project, tmp_path, monkeypatch):
    c = project({"00000": plain(30)})
    prepare_all(c)
    index_tars(c, heldout=0.5)
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        prepare_all(c)
    source, made = opened(c, "base")
    assert made.rows(0, "heldout").tolist() == source.rows(0, "heldout").tolist()
    found = written(tmp_path / "run" / "prepared")
    shutil.rmtree(tmp_path / "run" / "prepared")
    prepare_all(c)
    assert written(tmp_path / "run" / "prepared") == found


def test_a_damaged_tar_of_the_right_size_is_not_indexed_again(project, tmp_path):
    c = project({"00000": plain(5)})
    prepare_all(c)
    clean = written(tmp_path / "run" / "prepared")
    tar = tmp_path / "run/prepared/base/data/00000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    index_tars(c, heldout=0.5)
    prepare_all(c)
    index_tars(c)
    prepare_all(c)
    assert written(tmp_path / "run" / "prepared") == clean


def test_a_tar_that_is_gone_is_made_again(project, tmp_path):
    c = project({"00000": plain(2), "00001": plain(2, "t")})
    prepare_all(c)
    clean = written(tmp_path / "run" / "prepared")
    (tmp_path / "run/prepared/sr1/data/00001.tar").unlink()
    assert prepare.prepare_state(c).status == "stale"
    assert prepare_all(c).images == 2
    assert written(tmp_path / "run" / "prepared") == clean


def test_shards_of_tars_that_are_gone_are_deleted(project, tmp_path):
    c = project({"00000": plain(2), "00001": plain(2, "t")})
    prepare_all(c)
    (tmp_path / "tars" / "00001.tar").unlink()
    c = project({})
    assert prepare_all(c).images == 0
    left = {Path(name).name.partition(".")[0] for name in written(tmp_path / "run" / "prepared")}
    assert left == {"00000", "manifest", "prepared"}
    assert opened(c, "base")[1].shards[0].rows == 2


def test_a_tar_that_changed_since_it_was_indexed_is_refused(project, tmp_path):
    c = project({"00000": plain(3)})
    key, parts = plain(1)[0]
    same_size = parts["png"][:-20] + bytes(20)
    tar = tarfiles.write_tar([(key, {**parts, "png": same_size}), *plain(3)[1:]])
    (tmp_path / "tars" / "00000.tar").write_bytes(tar)
    with pytest.raises(ShardError, match=r"tars/00000\.tar` has changed since") as err:
        prepare_all(c)
    assert "delete `" in str(err.value.hint)
    assert not (tmp_path / "run" / "prepared").exists()


def test_an_index_made_anew_meanwhile_is_noticed(project):
    c = project({"00000": plain(3)})
    job, source = prepare.make_job(absolute(c))
    for todo in prepare.work_left(job, source.shards):
        prepare_shard.process(job, todo)
    index_tars(c, heldout=0.5)
    with pytest.raises(ShardError, match="was made anew while its images were prepared"):
        prepare.finish(prepare.Result(job, 1), source, job.members)


def test_the_state_goes_from_missing_over_partial_to_done(project, tmp_path):
    c = project({"00000": plain(3), "00001": plain(2, "t")})
    assert prepare.prepare_state(c).status == "missing"
    job, source = prepare.make_job(absolute(c))
    prepare_shard.process(job, prepare.work_left(job, source.shards)[0])
    found = prepare.prepare_state(c)
    assert (found.status, found.detail) == ("partial", "1 of 2 shards left")
    prepare_all(c)
    found = prepare.prepare_state(c)
    assert (found.status, found.detail) == ("done", "5 images for base, sr1")
    assert found.outputs == tuple(f"{tmp_path}/run/prepared/{m}" for m in ("base", "sr1"))
    with state.lock(c.prepared):
        assert prepare.prepare_state(c).status == "running"
        with pytest.raises(StorageError, match="in use by process"):
            prepare.run(c)
    storage.delete(f"{c.index}/manifest.json")
    assert "no finished index" in prepare.prepare_state(c).detail


def test_folders_on_a_store_work_as_local_ones_do(project, tmp_path):
    c = project({"00000": odd_samples(), "00001": plain(4)})
    prepare_all(c)
    for path in (tmp_path / "tars").iterdir():
        storage.put(f"memory://prepare/tars/{path.name}", path.read_bytes())
    remote = project({}, "out=memory://prepare/run", "data.tars=memory://prepare/tars")
    assert prepare_all(remote).images == 2 * 13
    assert prepare.prepare_state(remote).status == "done"
    _, made = opened(remote, "base")
    assert made.image(1, 3) == opened(c, "base")[1].image(1, 3)
    tar = "memory://prepare/run/prepared/base/data/00001.tar"
    assert storage.get(tar) == (tmp_path / "run/prepared/base/data/00001.tar").read_bytes()


def test_a_dry_run_tells_the_work_and_touches_nothing(project, tmp_path):
    c = project({"00000": plain(3), "00001": plain(2, "t")})
    before = sorted(tmp_path.rglob("*"))
    told = "\n".join(prepare_report.plan_lines(c))
    assert "base            2 shards to prepare, 5 images at 8 px, about " in told
    assert sorted(tmp_path.rglob("*")) == before
    prepare_all(c)
    assert "sr1             done, 32 px" in "\n".join(prepare_report.plan_lines(c))


def test_the_command_prints_the_config_and_the_plan(project, tmp_path, capsys):
    project({"00000": plain(3)})
    words = [CONFIG, f"out={tmp_path}/run", f"data.tars={tmp_path}/tars", "data.prepare=true"]
    assert command.run(command.parser().parse_args([*words, "--dry-run"])) == 0
    told = capsys.readouterr().out
    assert "prepare: true" in told
    assert "base            1 shards to prepare, 3 images at 8 px" in told


def test_a_key_that_a_new_tar_cannot_hold_is_an_error(project, tmp_path):
    c = project({"00000": plain(2)})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("a.png", KINDS["png"]), ("a.txt", b"c"), ("b\0c.txt", b"c")):
            info = tarfile.TarInfo("x" if "\0" in name else name)
            info.size, info.pax_headers = len(data), {"path": name} if "\0" in name else {}
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("y")
        info.size, info.pax_headers = len(KINDS["png"]), {"path": "b\0c.png"}
        archive.addfile(info, io.BytesIO(KINDS["png"]))
    (tmp_path / "tars" / "00000.tar").write_bytes(out.getvalue())
    index_tars(c)
    assert Prepared.open(c.index).keys(0).tolist() == [b"a", b"b\0c"]
    with pytest.raises(ShardError, match="cannot be prepared for base: its keys and captions"):
        prepare_all(c)


def test_a_config_that_would_not_read_them_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.prepare is false") as err:
        prepare.run(config())
    assert "set data.prepare=true" in str(err.value.hint)
    told = "\n".join(prepare_report.plan_lines(config("data.prepare=true")))
    assert "nothing to prepare yet" in told
    assert list(tmp_path.iterdir()) == []


def start(cluster: str, c, *overrides: str) -> subprocess.Popen:
    words = [CONFIG, f"out={c.out}", f"data.tars={c.data.tars}", "data.prepare=true", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "preencode", "prepare", *words, "--address", cluster],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_run_is_continued_and_a_damaged_tar_fails_alone(project, tmp_path, cluster):
    big = encoded(picture(0, (1200, 1000)), "jpeg", quality=90)
    shards = {
        f"{s:05d}": [(f"{s}{i:02d}", {"jpg": big, "txt": b"c"}) for i in range(8)] for s in range(6)
    }
    c = project(shards)
    prepare_all(c)
    folder = tmp_path / "run" / "prepared"
    clean = written(folder)
    shutil.rmtree(folder)

    process = start(cluster, c)
    path, deadline = f"{c.out}/logs/prepare.jsonl", time.monotonic() + 120
    while not any(e["event"] == "shard" for e in log.read(path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "base" / "prepared.json").exists()  # it was in mid-run

    tar = tmp_path / "tars" / "00005.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-4000].replace(b"\xff\xd8\xff", b"\xff\xd8\xfe") + whole[-4000:])
    result = prepare.run(c, cluster)
    assert list(result.failed) == [str(tar)]
    assert 0 < result.worked < 5  # what was finished was not done again
    told = "\n".join(prepare_report.summary_lines(result))
    assert "has changed since it was indexed" in told
    assert "1 failed, the images are incomplete" in told
    assert prepare.prepare_state(c).status == "partial"

    tar.write_bytes(whole)
    result = prepare.run(c, cluster)
    assert result.worked == 1
    assert written(folder) == clean
    result = prepare.run(c, cluster)
    assert "nothing to do: 6 shards" in "\n".join(prepare_report.summary_lines(result))
    assert written(folder) == clean
