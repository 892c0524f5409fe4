"""What `verify` finds: nothing in what was just written, and every way in which it can be wrong."""

from dataclasses import replace

import numpy as np
import pytest

from imagen import manifest, storage
from imagen.data import embeddings, tars
from preencode import shard, verify
from preencode.commands import verify as command
from preencode.shard import Job

pytestmark = pytest.mark.slow

CAPTIONS = ["seven", "a red square", "seven", "", "word " * 40, "blue and green"]


@pytest.fixture
def written(tmp_path, sample, encoder, make_job, publish_sets):
    """(job, tar) of one finished shard."""
    path = f"{tmp_path}/data/00000.tar"
    storage.put(path, tars.write_tar([sample(f"k{i}", c) for i, c in enumerate(CAPTIONS)]))
    tar = tars.Tar(path, storage.version(path))
    job = make_job(tmp_path)
    shard.process(job, tar, lambda: encoder)
    publish_sets(job, tar)
    return job, tar


def problems(written, encoder, captions=16) -> list[str]:
    job, tar = written
    found = verify.check_shard(job, tar, captions, lambda: encoder)
    every = [*verify.check_sets(job, [tar]), *verify.check_encoder(job, encoder)]
    return [*found.problems, *every]


def test_what_was_just_written_is_as_it_should_be(written, encoder):
    job, tar = written
    found = verify.check_shard(job, tar, 16, lambda: encoder)
    assert problems(written, encoder) == []
    assert (found.rows, found.captions, found.compared) == (6, 5, 5)
    assert found.lengths == {1: 1, 2: 1, 4: 2, 32: 1}
    assert 0 < found.worst < 1e-3  # float16 is not float32
    told = "\n".join(command.summary_lines(found, 1, "float32"))
    assert "6 samples joined with their captions" in told
    assert told.endswith("all is as it should be")


@pytest.mark.parametrize("part", ["tokens", "offsets", "ids", "slots", "keys"])
def test_one_flipped_bit_in_an_embedding_file_is_found(written, encoder, part):
    path = f"{written[0].embedding_dir}/00000.{part}.npy"
    flip(path)
    (found,) = problems(written, encoder)
    assert f"00000.{part}.npy` has checksum" in found


@pytest.mark.parametrize("part", ["index.npy", "keys.npy"])
def test_one_flipped_bit_in_an_index_file_is_found(written, encoder, part):
    flip(f"{written[0].index_dir}/00000.{part}")
    with pytest.raises(Exception, match=f"00000.{part}` has .* bytes with checksum"):
        problems(written, encoder)


def flip(path: str) -> None:
    data = bytearray(storage.get(path))
    data[-3] ^= 4
    storage.put(path, bytes(data))


def rewrite(job: Job, part: str, change) -> None:
    """Replace one array by a changed one, and the manifest with it: only its meaning is wrong."""
    path = f"{job.embedding_dir}/00000.json"
    body = manifest.read(path, "embeddings")
    array = np.array(embeddings.open_part(job.embedding_dir, body, part))
    changed = change(array)
    name = f"00000.{part}.npy"
    entry = embeddings.arrays.write_npy(
        f"{job.embedding_dir}/{name}", changed.shape, changed.dtype, lambda out: put(out, changed)
    )
    manifest.write(path, "embeddings", {**body, "files": {**body["files"], name: entry}})


def put(out: np.ndarray, values: np.ndarray) -> None:
    out[:] = values


def changed(at: int, value: object):
    def change(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return change


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("slots", changed(2, 9), "a slot is of no caption"),
        ("slots", lambda a: a[:-1], "5 slots and 6 keys for 6 samples"),
        ("keys", changed(1, b"zz"), "its keys are others than those of its index"),
        ("offsets", changed(1, 0), "its offsets do not divide its tokens into captions"),
        ("ids", lambda a: a[:-1], "its offsets do not divide its tokens into captions"),
        ("tokens", lambda a: (a * 1.02).astype(np.float16), "differs by [12]...e-02"),
        ("tokens", lambda a: a[::-1], "differs by"),
        ("ids", changed(0, 77), "2 samples have the tokens of another caption, first in row 0"),
        ("slots", lambda a: a[::-1], "samples have the tokens of another caption"),
    ],
)
def test_files_that_are_whole_and_wrong_are_found(written, encoder, part, change, told):
    import re

    rewrite(written[0], part, change)
    assert any(re.search(told, problem) for problem in problems(written, encoder))


def test_a_tar_whose_captions_changed_behind_its_version_is_found(written, encoder, sample):
    _, tar = written
    other = [sample(f"k{i}", c.replace("seven", "eight")) for i, c in enumerate(CAPTIONS)]
    storage.put(tar.path, tars.write_tar(other))
    (found,) = problems(written, encoder)
    assert "captions in `" in found
    assert "are others than its index says" in found


def test_an_image_that_changed_behind_its_version_is_found(written, encoder):
    _, tar = written
    data = bytearray(storage.get(tar.path))
    data[512 + 60] ^= 1
    storage.put(tar.path, bytes(data))
    assert problems(written, encoder) == [f"images in `{tar.path}` are others than its index says"]


def test_an_empty_caption_of_another_encoder_is_found(written, encoder):
    job, _ = written
    embeddings.publish_encoder(job.embedding_dir, job.text, job.fingerprint, np.zeros((1, 256)))
    assert problems(written, encoder) == [
        "`null.npy` is not what the encoder gives for the empty caption"
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "0" * 16}, "the embeddings' manifest.json is of another data set"),
        ({"shards": [{"shard": "00000", "rows": 6, "digest": "0" * 32}]}, "says other things"),
    ],
)
def test_a_set_manifest_of_something_else_is_found(written, encoder, change, told):
    path = f"{written[0].embedding_dir}/manifest.json"
    manifest.write(path, "embedding-set", {**manifest.read(path, "embedding-set"), **change})
    (found,) = problems(written, encoder)
    assert told in found


def test_a_missing_shard_and_another_encoder_are_found(written, encoder):
    job, tar = written
    other = replace(job, fingerprint="f" * 16)
    assert problems((other, tar), encoder) == [
        "it has no complete embeddings by this encoder",
        f"`{job.embedding_dir}/encoder.json` is of encoder {job.fingerprint}, not {'f' * 16}",
    ]
    storage.delete(f"{job.index_dir}/00000.json")
    assert problems(written, encoder) == ["it has no complete index of this tar"]


def test_a_set_manifest_that_lists_other_shards_is_found(written):
    job, tar = written
    found = list(verify.check_sets(job, [tar, tars.Tar("00001.tar", "1")]))
    assert len(found) == 2
    assert all("lists other shards than there are tars" in problem for problem in found)


def test_findings_of_shards_add_up():
    total = verify.Findings("all")
    total.add(verify.Findings("a", ["wrong"], rows=3, compared=2, worst=0.1))
    total.add(verify.Findings("b", rows=4, compared=1, worst=0.2))
    assert (total.rows, total.compared, total.worst) == (7, 3, 0.2)
    assert total.problems == ["a: wrong"]
    told = list(command.summary_lines(total, 2, "float32"))
    assert told[-2:] == ["PROBLEM a: wrong", "1 problems"]
