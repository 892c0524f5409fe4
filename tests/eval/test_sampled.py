from collections import Counter

import numpy as np
import pytest
import safetensors.numpy

from eval import sampled, sampling, score
from eval.config import EvalSection
from eval.prompts import Item
from imagen import storage


@pytest.fixture
def work(tmp_path):
    """50 chunks of two members, every image of its own number."""
    items = [Item("a", i) for i in range(495)]
    found = sampling.chunks(str(tmp_path), items, "x", EvalSection().options)
    for chunk in found:
        numbers = np.array([item.seed for item in chunk.items], np.uint16)[:, None, None, None]
        arrays = {
            name: np.broadcast_to(numbers, (len(numbers), 3, side, side)).astype(np.uint16)
            for name, side in (("base", 2), ("sr1", 4))
        }
        storage.put(chunk.path, safetensors.numpy.save(arrays))
        features = {"net": numbers[:, :, 0, 0].astype(np.float32)}
        storage.put(chunk.features("mark"), safetensors.numpy.save(features))
    return items, found


@pytest.fixture
def reads(monkeypatch):
    seen, get = Counter(), storage.get

    def counted(path):
        seen[path] += 1
        return get(path)

    monkeypatch.setattr(storage, "get", counted)
    return seen


def test_a_pass_over_all_members_reads_each_chunk_once(work, reads):
    items, found = work
    chunks = sampled.Chunks(found)
    members = {name: sampled.ChunkImages(chunks, name) for name in ("base", "sr1")}
    seen = {name: [] for name in members}
    for block in score.Sampled(items, members).blocks():
        for name, images in block.items():
            seen[name] += [int(image[0, 0, 0]) for image in images]
    assert seen == {"base": list(range(495)), "sr1": list(range(495))}
    assert members["sr1"][3].shape == (4, 4, 3)
    assert set(reads) == {chunk.path for chunk in found}
    reads.pop(found[0].path)  # asked for again just now
    assert set(reads.values()) == {1}


def test_a_single_image_reads_its_chunk_alone(work, reads):
    images = sampled.ChunkImages(sampled.Chunks(work[1]), "base")
    assert images[-1][0, 0, 0] == 494
    assert list(reads) == [work[1][-1].path]
    with pytest.raises(IndexError):
        images[495]


def test_features_are_those_of_all_chunks_in_order(work):
    assert sampled.features(work[1], "mark")["net"][:, 0].tolist() == list(range(495))
    assert sampled.features(work[1], "") == {}
