import io
import json

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from eval import originals, statistics
from eval.commands import statistics as command
from eval.statistics import Look
from imagen import storage
from imagen.data.tars import write_tar
from imagen.errors import ConfigError, ImagenError, ShardError, StorageError
from runtime import cli

LOOK = Look(16, 3, "means")


def means(images):
    return np.stack([image.mean(axis=(0, 1)) for image in images]).astype(np.float32)


def picture(seed, side=24, fmt="png"):
    draw, out = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, fmt)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    """150 pictures with captions, one that is too small and one that is no picture."""
    for i in range(150):
        storage.put(f"{tmp_path}/pictures/{i:04d}.png", picture(i))
        storage.put(f"{tmp_path}/pictures/{i:04d}.txt", f"picture \n number {i}".encode())
    storage.put(f"{tmp_path}/pictures/small.png", picture(0, 8))
    storage.put(f"{tmp_path}/pictures/text.jpg", b"no picture")
    storage.put(f"{tmp_path}/pictures/readme.md", b"")
    return f"{tmp_path}/pictures"


@pytest.fixture
def tars(tmp_path):
    samples = [
        (f"p{i:04d}", {"png": picture(i), "txt": f"picture number {i}".encode()}) for i in range(90)
    ]
    broken = [("bad", {"png": b"x", "txt": b"y"})]
    storage.put(f"{tmp_path}/tars/0.tar", write_tar(samples[:50]))
    storage.put(f"{tmp_path}/tars/1.tar", write_tar(samples[50:] + broken))
    return f"{tmp_path}/tars"


def rows(count, side=16):
    """Features of pictures that are scaled down as training scales them."""
    found = [Image.open(io.BytesIO(picture(i))) for i in range(count)]
    small = [np.asarray(f.resize((side, side), Image.Resampling.LANCZOS)) for f in found]
    return means(small)


def test_statistics_of_a_folder_are_those_of_its_pictures_and_what_is_left_out_is_counted(folder):
    found = statistics.gather(originals.find(folder), LOOK, means)
    want = rows(150).astype(np.float64)
    assert found.gaussian.n == 150
    np.testing.assert_allclose(found.gaussian.mean, want.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.gaussian.cov, np.cov(want.T), rtol=1e-5)
    assert sorted(found.features.tolist()) == sorted(rows(150).tolist())
    reasons = dict(found.unreadable)
    assert reasons.pop("image of 8 px is smaller than 16 px") == 1
    assert list(reasons.values()) == [1]
    assert "not a readable image" in next(iter(reasons))


def test_statistics_of_tars_hold_a_chunk_of_pictures_at_a_time(tars):
    sizes = []

    def extract(images):
        sizes.append(len(images))
        return means(images)

    seen = []
    found = statistics.gather(originals.find(tars), LOOK, extract, seen.append)
    assert sizes == seen == [64, 26]
    assert found.gaussian.n == 90
    assert found.unreadable == {"bad_image": 1}
    np.testing.assert_allclose(found.gaussian.mean, rows(90).mean(axis=0), rtol=1e-6)
    one = statistics.gather(originals.find(f"{tars}/0.tar"), LOOK, means)
    assert one.gaussian.n == 50


def test_the_features_that_are_kept_are_the_same_in_any_order(folder, tars, monkeypatch):
    monkeypatch.setattr(statistics, "MOST_FEATURES", 20)
    names = [f"{i}" for i in range(100)]
    values = np.arange(100, dtype=np.float32)[:, None]
    kept = []
    for order in (range(100), range(99, -1, -1)):
        found = statistics._Sum()
        for part in np.array_split(np.array(order), 9):
            found.add([names[i] for i in part], values[part])
        kept.append(sorted(found.features()[:, 0].tolist()))
        assert found.gaussian.n == 100
    assert kept[0] == kept[1]
    assert len(kept[0]) == 20


def test_a_file_gives_back_what_was_saved(folder, tmp_path):
    found = statistics.gather(originals.find(folder), LOOK, means)
    path = str(tmp_path / "ref.safetensors")
    statistics.save(path, found)
    again = statistics.load(path)
    assert (again.network, again.what, again.identity) == (
        found.network,
        found.what,
        found.identity,
    )
    assert again.unreadable == found.unreadable
    np.testing.assert_array_equal(again.gaussian.cov, found.gaussian.cov)
    np.testing.assert_array_equal(again.features, found.features)
    assert (again.size, again.channels) == ((16, 16), 3)
    assert statistics.check(path, LOOK)[0].gaussian.n == 150
    assert statistics.check(path, Look((16, 16), 3, "means"))[1] == ""
    with pytest.raises(ConfigError, match=r"is of the network means, .* is inception"):
        statistics.check(path, Look(16, 3, "inception-6726825d"))


@pytest.mark.parametrize(
    ("look", "theirs"),
    [(Look((16, 24), 3, "means"), "16x24 px, 3"), (Look(16, 1, "means"), "16 px, 1")],
)
def test_statistics_of_another_size_are_not_compared_with_and_it_is_said_why(
    folder, tmp_path, look, theirs
):
    path = str(tmp_path / "ref.safetensors")
    statistics.save(path, statistics.gather(originals.find(folder), LOOK, means))
    found, why = statistics.check(path, look)
    assert found is None
    assert f"is of images of 16 px, 3 channels, the samples have {theirs} channels" in why


def test_a_file_of_something_else_is_no_statistics(tmp_path):
    path = str(tmp_path / "other.safetensors")
    storage.put(path, safetensors.numpy.save({"a": np.zeros(3)}))
    with pytest.raises(ConfigError, match="holds no statistics of images"):
        statistics.load(path)
    storage.put(path, b"\0" * 40)
    with pytest.raises(ConfigError, match="holds no statistics of images"):
        statistics.load(path)


def test_a_source_without_pictures_is_named(tmp_path):
    with pytest.raises(StorageError, match="is no folder with files"):
        originals.find(str(tmp_path))
    storage.put(f"{tmp_path}/a.txt", b"")
    with pytest.raises(ShardError, match="has 1 files, none of which is"):
        originals.find(str(tmp_path))
    storage.put(f"{tmp_path}/a.png", b"no picture")
    with pytest.raises(ShardError, match=r"no images of the folder .* can be used"):
        statistics.gather(originals.find(str(tmp_path)), LOOK, means)


NETWORK = """
def averages():
    return lambda x: x.mean(dim=(2, 3))
"""


@pytest.fixture
def network(tmp_path, monkeypatch):
    (tmp_path / "my_statistics_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_statistics_network", raising=False)
    return "my_statistics_network:averages"


def run(*words):
    return command.run(cli._parse(command.parser(), [str(word) for word in words]))


def test_the_command_writes_statistics_and_captions_once(folder, network, tmp_path, capsys):
    out, lines = tmp_path / "ref.safetensors", tmp_path / "captions.txt"
    words = [folder, "--network", network, "--size", 16, "--out", out]
    assert run(*words, "--captions", lines, "--count", 30, "--seed", 1) == 0
    told = capsys.readouterr().out
    assert "150 images of the folder" in told
    assert "left out    1: image of 8 px is smaller than 16 px" in told
    found = statistics.load(str(out))
    np.testing.assert_allclose(
        found.gaussian.mean, rows(150).mean(axis=0) / 127.5 - 1, rtol=1e-4, atol=1e-6
    )
    written = lines.read_text().splitlines()
    assert len(set(written)) == 30
    assert set(written) <= {f"picture number {i}" for i in range(150)}
    before = out.stat().st_mtime_ns
    run(*words)
    assert "is there already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    storage.put(f"{folder}/new.png", picture(1000))
    run(*words)
    assert statistics.load(str(out)).gaussian.n == 151


def test_captions_are_chosen_by_seed_alone(tars, tmp_path):
    chosen = []
    for seed in (0, 0, 1):
        run(tars, "--captions", tmp_path / "c.txt", "--count", 10, "--seed", seed)
        chosen.append((tmp_path / "c.txt").read_text())
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_config_gives_its_data_set_and_size(tiny, network, tmp_path, capsys):
    tiny.write_data(tmp_path, 120)
    path, out = tiny.write_config(tmp_path), tmp_path / "ref.safetensors"
    assert run(path, "--network", network, "--out", out, "--split", "all") == 0
    found = statistics.load(str(out))
    assert found.gaussian.n == 120
    assert found.what == "120 all images of the data set"
    run(path, "--network", network, "--out", out, "--split", "train", "--dry-run")
    assert "(32, 32) px" in capsys.readouterr().out
    assert statistics.load(str(out)).gaussian.n == 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o.safetensors", "--network", "pca", "--size", "16"], "need no file"),
        (["--out", "o.safetensors"], "have no one size"),
        ([], "nothing is asked for"),
    ],
)
def test_what_cannot_work_is_refused(folder, words, message):
    with pytest.raises(ImagenError, match=message):
        run(folder, *words)


def test_the_files_metadata_say_what_it_is(folder, tmp_path):
    path = str(tmp_path / "ref.safetensors")
    statistics.save(path, statistics.gather(originals.find(folder), LOOK, means))
    with safetensors.safe_open(path, "numpy") as file:
        told = json.loads(file.metadata()["imagen"])
    assert told["n"] == 150
    assert told["what"] == f"150 images of the folder `{folder}`"


def gets(monkeypatch):
    seen, get = [], storage.get

    def counted(name):
        seen.append(name)
        return get(name)

    monkeypatch.setattr(storage, "get", counted)
    return seen


def test_captions_and_statistics_are_of_the_same_pictures_and_read_once(
    folder, network, tmp_path, monkeypatch, capsys
):
    storage.put(f"{folder}/small.txt", b"too small")
    seen, lines = gets(monkeypatch), tmp_path / "captions.txt"
    out = tmp_path / "ref.safetensors"
    words = [folder, "--network", network, "--size", 16, "--captions", lines]
    run(*words, "--out", out)
    written = lines.read_text()
    assert len(written.splitlines()) == 150
    assert "too small" not in written
    assert len([name for name in seen if name.startswith(folder)]) == 152 + 151
    assert "150 captions where 30,000 were asked for" in capsys.readouterr().err
    for more in ([], ["--out", out]):  # alone, or with statistics that are there already
        storage.delete(str(lines))
        run(*words, *more)
        assert lines.read_text() == written
    capsys.readouterr()
    run(*words, "--count", 150)
    assert "asked for" not in capsys.readouterr().err


def test_captions_alone_need_no_picture(folder, tmp_path, monkeypatch):
    seen, lines = gets(monkeypatch), tmp_path / "captions.txt"
    run(folder, "--captions", lines)
    assert len(lines.read_text().splitlines()) == 150
    assert {name.rpartition(".")[2] for name in seen if name.startswith(folder)} == {"txt"}


def test_a_folder_is_read_ahead_in_order_and_no_further_than_is_wanted(folder, monkeypatch):
    seen = gets(monkeypatch)
    found = originals.find(folder).read(bad := {})
    first = [next(found) for _ in range(3)]
    assert [one.name for one in first] == ["0000", "0001", "0002"]
    assert first[2].data == picture(2)
    assert first[2].caption == "picture \n number 2"
    found.close()
    assert not bad
    assert 6 < len(seen) < 100
