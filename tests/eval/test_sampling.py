import numpy as np
import pytest
import safetensors.numpy

from eval import sampled, sampling
from eval.prompts import Item
from imagen import storage
from imagen.cascade import SampleOptions
from runtime import session


@pytest.fixture(autouse=True)
def nothing_expected(monkeypatch):
    monkeypatch.delenv(session.EXPECTS, raising=False)


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
def test_images_are_read_in_the_order_of_the_items_a_chunk_at_a_time(names, tmp_path, monkeypatch):
    items = [Item("seven", i) for i in range(32)]
    work = sampling.chunks(str(tmp_path), items, "cascade", SampleOptions())
    for chunk in work:
        seeds = np.array([item.seed for item in chunk.items], np.uint8)
        arrays = {n: np.tile(seeds[:, None, None, None], (1, 1, 2, 2)) for n in names}
        storage.put(chunk.path, safetensors.numpy.save(arrays))
    reads = []
    get = storage.get
    monkeypatch.setattr(storage, "get", lambda path: reads.append(path) or get(path))
    images = sampled.ChunkImages(sampled.Chunks(work), names[0])
    assert [int(image[0, 0, 0]) for image in images] == list(range(32))
    assert len(reads) == 4
    assert int(images[-1][0, 0, 0]) == 31
    assert [int(image[0, 0, 0]) for image in images[8:12]] == [8, 9, 10, 11]
    with pytest.raises(IndexError):
        images[32]


def test_an_actor_takes_a_gpu_where_there_are_any_and_nodes_of_its_own_where_they_are_named():
    assert sampling.actors([{"CPU": 4.0}, {"CPU": 2.0}], 9) == (6, {"num_cpus": 1})
    assert sampling.actors([{"CPU": 64.0, "GPU": 8.0}], 3) == (3, {"num_gpus": 1})
    fenced = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0, "imagen_eval": 1.0}]
    takes = {"num_cpus": 1, "resources": {"imagen_eval": 0.001}}
    assert sampling.actors(fenced, 9) == (4, takes)


FENCE = {"resources": {"imagen_eval": 0.001}}
TRAINED_ON = {"CPU": 7.0, "GPU": 1.0, "imagen_base": 1.0}


@pytest.mark.parametrize(
    ("expects", "nodes", "takes"),
    [
        ("GPU,imagen_base,imagen_eval", [], (1, {"num_gpus": 1, **FENCE})),
        ("GPU,imagen_base,imagen_eval", [TRAINED_ON] * 3, (1, {"num_gpus": 1, **FENCE})),
        ("imagen_eval", [TRAINED_ON], (1, {"num_cpus": 1, **FENCE})),
        ("GPU", [{"CPU": 4.0}], (1, {"num_gpus": 1})),
        ("GPU", [{"CPU": 4.0}, {"CPU": 7.0, "GPU": 2.0}], (2, {"num_gpus": 1})),
        ("imagen_base", [{"CPU": 4.0}], (4, {"num_cpus": 1})),
        (
            "GPU,imagen_eval",  # what is there says more than what is expected
            [TRAINED_ON, {"CPU": 4.0, "imagen_eval": 1.0}],
            (4, {"num_cpus": 1, **FENCE}),
        ),
    ],
)
def test_an_actor_waits_for_the_machines_that_are_expected(monkeypatch, expects, nodes, takes):
    monkeypatch.setenv(session.EXPECTS, expects)
    assert sampling.actors(nodes, 9) == takes


def test_a_wait_for_a_machine_is_told(capsys: pytest.CaptureFixture):
    takes = {"num_gpus": 1, **FENCE}
    sampling._tell_waiting([{"CPU": 0.0}, TRAINED_ON, {"imagen_eval": 1.0}], takes)
    told = "eval: waiting for a machine with GPU and imagen_eval\n"
    assert capsys.readouterr().err == told
    sampling._tell_waiting([{"CPU": 7.0, "GPU": 1.0, "imagen_eval": 1.0}], takes)
    assert capsys.readouterr().err == ""
