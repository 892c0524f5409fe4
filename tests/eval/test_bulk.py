import io
import json
import tarfile
import threading

import pytest
from PIL import Image

from eval import bulk, lineups
from eval.prompts import Item
from imagen import manifest, storage
from imagen.cascade import Cascade, SampleOptions
from imagen.errors import StorageError

ITEMS = tuple(Item(f"the digit {i % 10}", 100 + i) for i in range(7))


@pytest.fixture
def cascade(project):
    return Cascade.of_snapshots(lineups.newest(project).snapshots, project.text)


def order(cascade, kind="tar", items=ITEMS, **options):
    return bulk.Order(cascade.fingerprint, items, SampleOptions(**options), kind, 3)


def work(folder, asked, cascade, most=99):
    left = bulk.begin(folder, asked)
    for pack in left[:most]:
        pack.make(cascade)
    return len(left)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "png"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(cascade, tmp_path, kind):
    quiet, stopped = f"{tmp_path}/quiet", f"{tmp_path}/stopped"
    asked = order(cascade, kind)
    assert work(quiet, asked, cascade) == 3
    bulk.finish(quiet, asked)
    work(stopped, asked, cascade, most=1)
    if kind == "png":
        storage.delete(f"{stopped}/000000001.png")  # stopped in the middle of a shard
    assert work(stopped, asked, cascade) == (2 if kind == "tar" else 3)
    bulk.finish(stopped, asked)
    assert storage.listdir(quiet) == storage.listdir(stopped)
    for name in storage.listdir(quiet):
        assert storage.get(f"{quiet}/{name}") == storage.get(f"{stopped}/{name}")
    assert work(quiet, asked, cascade) == 0
    body = manifest.read_if_complete(f"{quiet}/manifest.json", bulk.KIND)
    assert body is not None
    assert len(body["files"]) == (4 if kind == "tar" else 8)


@pytest.mark.slow
def test_a_tar_has_each_image_as_it_is_sampled_alone_with_prompt_and_seed(cascade, tmp_path):
    asked = order(cascade, steps=3)
    work(str(tmp_path), asked, cascade)
    with tarfile.open(tmp_path / "00001.tar") as tar:
        names = tar.getnames()
        png = tar.extractfile("000000004.png").read()
        text = tar.extractfile("000000004.txt").read()
        facts = json.loads(tar.extractfile("000000004.json").read())
    assert len(names) == 9
    assert (text, facts) == (b"the digit 4", {"prompt": "the digit 4", "seed": 104})
    alone = cascade.draw("the digit 4", 104, SampleOptions(steps=3))
    pairs = zip(Image.open(io.BytesIO(png)).tobytes(), alone.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1


def test_a_folder_of_another_request_is_refused(cascade, tmp_path):
    bulk.begin(str(tmp_path), order(cascade))
    for other in (order(cascade, steps=9), order(cascade, items=ITEMS[:-1]), order(cascade, "png")):
        with pytest.raises(StorageError, match="holds samples of another request"):
            bulk.begin(str(tmp_path), other)
    assert len(bulk.begin(str(tmp_path), order(cascade))) == 3


def test_many_files_are_read_at_once_for_their_checksums(cascade, tmp_path, monkeypatch):
    asked, get = order(cascade, "png"), storage.get
    for pack in asked.packs(str(tmp_path)):
        for name in pack.names:
            storage.put(f"{tmp_path}/{name}", name.encode())
    together = threading.Barrier(len(ITEMS), timeout=60)

    def met(path):
        if path.endswith(".png"):
            together.wait()  # breaks when they come one after the other
        return get(path)

    monkeypatch.setattr(storage, "get", met)
    bulk.finish(str(tmp_path), asked)
    files = manifest.read(f"{tmp_path}/manifest.json", bulk.KIND)["files"]
    assert files["000000004.png"] == {"bytes": 13, "crc32c": storage.crc32c(b"000000004.png")}
