import pickle
from dataclasses import replace

import numpy as np
import pytest

from imagen import manifest, storage
from imagen.data import open_shards, tars
from imagen.data.embeddings import (
    EmbeddingSet,
    Layout,
    publish_encoder,
    publish_set,
    publish_shard,
)
from imagen.data.shard_cache import ShardCache
from imagen.errors import ShardError
from imagen.text.config import TextConfig

TEXT = TextConfig()
DIM = 4


def publish_one(folder, name, keys, facts, captions=3, spoil=None):
    """Caption i has i + 1 tokens whose values are all i; row r has caption r % captions."""
    values = np.concatenate([np.full((i + 1, DIM), i) for i in range(captions)])
    layout = Layout(
        ids=np.arange(len(values), dtype=np.int32),
        offsets=np.cumsum([0, *range(1, captions + 1)]),
        slots=(np.arange(len(keys)) % captions).astype(np.int32),
        keys=keys,
    )

    def fill(out):
        np.copyto(out, values)
        if spoil is not None:
            out[spoil] = np.inf

    return publish_shard(folder, name, layout, DIM, fill, facts)


def publish(root, prepared, text=TEXT, fingerprint="fp"):
    folder = storage.join(str(root), fingerprint)
    publish_encoder(folder, text, fingerprint, np.zeros((1, DIM), np.float32))
    bodies = []
    for i, info in enumerate(prepared.shards):
        facts = {
            "encoder": fingerprint,
            "digest": info.digest,
            "truncated": 0,
            "lost_tokens": 0,
            "empty": 0,
        }
        bodies.append(publish_one(folder, info.name, prepared.keys(i), facts))
    publish_set(folder, fingerprint, prepared.fingerprint, bodies)
    return folder


@pytest.fixture
def data(samples, index_folder, tmp_path):
    shards = {"00000": tars.write_tar(samples(7, "a")), "00001": tars.write_tar(samples(5, "b"))}
    return index_folder(tmp_path, shards)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_tokens_come_back_by_shard_and_row(data, tmp_path, place, cached):
    root = tmp_path / "emb" if place == "local" else f"memory://emb-{tmp_path.name}"
    publish(root, data)
    cache = ShardCache(str(tmp_path / "cache"), 10**6) if cached else None
    found = EmbeddingSet.find(str(root), TEXT, data, cache)
    assert (found.fingerprint, found.dim, found.text) == ("fp", DIM, TEXT)
    assert found.null.shape == (1, DIM)
    for shard in range(2):
        np.testing.assert_array_equal(found.keys(shard), data.keys(shard))
        for row in range(data.shards[shard].rows):
            np.testing.assert_array_equal(
                found.tokens(shard, row), np.full((row % 3 + 1, DIM), row % 3, np.float16)
            )


def test_the_documented_layout_needs_five_lines_of_numpy(data, tmp_path):
    publish(tmp_path / "emb", data)
    folder = tmp_path / "emb" / "fp"
    tokens = np.load(folder / "00001.tokens.npy", mmap_mode="r")
    offsets = np.load(folder / "00001.offsets.npy")
    slots = np.load(folder / "00001.slots.npy")
    keys = np.load(folder / "00001.keys.npy")
    caption = slots[list(keys).index(b"b004")]
    embedding = tokens[offsets[caption] : offsets[caption + 1]]
    np.testing.assert_array_equal(embedding, np.ones((2, DIM)))
    assert (tokens.dtype, offsets.dtype, slots.dtype) == (np.float16, np.int64, np.int32)


def test_tokens_are_a_view_of_the_mapped_file(data, tmp_path):
    publish(tmp_path / "emb", data)
    tokens = EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data).tokens(0, 1)
    assert tokens.base is not None
    assert not tokens.flags.writeable


def test_an_embedding_set_survives_pickling(data, tmp_path):
    publish(tmp_path / "emb", data)
    found = EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)
    found.tokens(0, 0)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.tokens(1, 4), found.tokens(1, 4))


def test_embeddings_of_another_encoder_are_refused_and_listed(data, tmp_path):
    publish(tmp_path / "emb", data, replace(TEXT, max_tokens=64), "other")
    with pytest.raises(
        ShardError,
        match=r"holds embeddings of another encoder: other: tiny-t5 "
        r"\(max_tokens 64, float32, cleaning light\); "
        r"the config wants tiny-t5 \(max_tokens 128, float32, cleaning light\)",
    ):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)


def test_the_matching_encoder_is_chosen_among_several(data, tmp_path):
    publish(tmp_path / "emb", data, replace(TEXT, max_tokens=64), "aaaa")
    publish(tmp_path / "emb", data)
    assert EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data).fingerprint == "fp"


def test_two_versions_of_one_encoder_are_an_error(data, tmp_path):
    publish(tmp_path / "emb", data)
    publish(tmp_path / "emb", data, fingerprint="newer")
    with pytest.raises(ShardError, match="of 2 versions of tiny-t5: fp, newer"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)


def test_no_embeddings_are_an_error_that_says_what_to_run(data, tmp_path):
    with pytest.raises(ShardError, match=r"no embeddings in .*\n\nhint: run `python -m preenc"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)


def test_unfinished_embeddings_are_an_error(data, tmp_path):
    storage.delete(storage.join(publish(tmp_path / "emb", data), "manifest.json"))
    with pytest.raises(ShardError, match="are unfinished: 2 shards so far"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)


def test_missing_shards_are_named(samples, index_folder, data, tmp_path):
    publish(tmp_path / "emb", data)
    more = {name: tars.write_tar(samples(4, name)) for name in ("00000", "00001", "00002")}
    grown = index_folder(tmp_path / "grown", more)
    with pytest.raises(ShardError, match="lack 1 of 3 shards: 00002"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, grown)


def test_embeddings_of_other_captions_are_refused(samples, index_folder, data, tmp_path):
    publish(tmp_path / "emb", data)
    shards = {"00000": tars.write_tar(samples(7, "a")), "00001": tars.write_tar(samples(5, "c"))}
    changed = index_folder(tmp_path / "changed", shards)
    with pytest.raises(ShardError, match="of other captions than the data set in shards 00001"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, changed)


def test_values_that_are_not_finite_are_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(
        ShardError, match=r"shard 00000: the encoder returned values that are not .*of `a001`"
    ):
        publish_one(str(tmp_path / "bad"), "00000", data.keys(0), {}, spoil=(1, 2))
    assert not list((tmp_path / "bad").iterdir())


def test_a_shorter_token_file_is_an_error(data, tmp_path):
    folder = publish(tmp_path / "emb", data)
    path = storage.join(folder, "00000.tokens.npy")
    storage.put(path, storage.get(path)[:-2])
    with pytest.raises(ShardError, match=r"00000.tokens.npy` has \d+ bytes, its manifest says"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data).tokens(0, 0)


def test_a_shard_that_was_replaced_behind_the_set_is_refused(data, tmp_path):
    folder = publish(tmp_path / "emb", data)
    path = storage.join(folder, "00001.json")
    body = manifest.read(path, "embeddings")
    manifest.write(path, "embeddings", {**body, "digest": "0" * 32})
    with pytest.raises(ShardError, match=r"shard 00001 in .* of other captions than the manifest"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data).tokens(1, 0)


@pytest.mark.parametrize("field", ["revision", "dtype"])
def test_a_field_that_came_later_with_a_default_keeps_old_embeddings_valid(data, tmp_path, field):
    path = storage.join(publish(tmp_path / "emb", data), "encoder.json")
    body = manifest.read(path, "encoder")
    del body["text"][field]
    manifest.write(path, "encoder", body)
    assert EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data).fingerprint == "fp"


def test_embeddings_of_a_newer_version_are_listed_as_unknown(data, tmp_path):
    path = storage.join(publish(tmp_path / "emb", data), "encoder.json")
    body = manifest.read(path, "encoder")
    manifest.write(path, "encoder", {**body, "text": {**body["text"], "layer": 3}})
    with pytest.raises(ShardError, match="fp: an encoder that this version does not know; the con"):
        EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)


def test_only_the_shards_used_last_stay_open(data, tmp_path, monkeypatch):
    monkeypatch.setattr(open_shards, "OPEN_SHARDS", 1)
    publish(tmp_path / "emb", data)
    found = EmbeddingSet.find(str(tmp_path / "emb"), TEXT, data)
    lengths = [len(found.tokens(shard, 1)) for shard in (0, 1, 0)]
    assert lengths == [2, 2, 2]
    assert len(found._shard) == 1
