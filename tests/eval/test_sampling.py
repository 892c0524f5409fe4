import numpy as np
import pytest
import safetensors.numpy

from eval import sampling
from eval.prompts import Item
from imagen import storage
from imagen.cascade import SampleOptions


def test_chunks_cover_the_items_in_order_and_their_names_tell_what_decides_the_images():
    items = [Item("seven", i) for i in range(23)]
    work = sampling.chunks("folder", items, "cascade", SampleOptions())
    assert [item for chunk in work for item in chunk.items] == items
    assert [len(chunk.items) for chunk in work] == [10, 10, 3]
    others = [
        sampling.chunks("folder", items, "another", SampleOptions()),
        sampling.chunks("folder", items, "cascade", SampleOptions(steps=3)),
        sampling.chunks("folder", items[:-1], "cascade", SampleOptions()),
    ]
    names = {chunk.path for plan in (work, *others) for chunk in plan}
    assert len(names) == sum(len(plan) for plan in (work, *others))


@pytest.mark.parametrize("names", [("base", "sr1", "sr2"), ("sr2", "base", "sr1")])
def test_members_come_back_in_the_order_of_the_cascade_whatever_the_files_say(names, tmp_path):
    items = [Item("seven", i) for i in range(12)]
    work = sampling.chunks(str(tmp_path), items, "cascade", SampleOptions())
    for chunk in work:
        seeds = np.array([item.seed for item in chunk.items], np.uint8)
        arrays = {n: np.tile(seeds[:, None, None, None], (1, 1, 2, 2)) for n in names}
        storage.put(chunk.path, safetensors.numpy.save(arrays))
    images = sampling.read(work, names)
    assert tuple(images) == names
    for rows in images.values():
        assert [int(image[0, 0, 0]) for image in rows] == list(range(12))
