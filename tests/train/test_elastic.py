import pytest

from train import elastic
from train.worker import Job


def test_a_worker_takes_one_cpu_and_its_loaders(helpers):
    job = Job(helpers.make_config("x", loader_workers=2), "base", "one")
    assert elastic.resources(job, {"CPU": 8.0}) == {"CPU": 3.0}


def test_a_worker_takes_a_gpu_where_there_are_some(helpers):
    job = Job(helpers.make_config("x"), "base", "one")
    assert elastic.resources(job, {"CPU": 8.0, "GPU": 2.0}) == {"CPU": 1.0, "GPU": 1.0}


def test_members_on_one_cluster_are_fenced_from_each_other(helpers):
    cluster = {"CPU": 2.0, "imagen_base": 1.0, "imagen_sr1": 1.0}
    for member in ("base", "sr1"):
        job = Job(helpers.make_config("x", workers=(1, 2)), member, "one")
        wants = elastic.resources(job, cluster)
        assert wants == {"CPU": 1.0, f"imagen_{member}": 1.0}
        assert elastic.room(wants, cluster) == 1


@pytest.mark.parametrize(("cpus", "workers"), [(0.0, 0), (2.0, 2), (7.9, 7)])
def test_room_is_counted_in_whole_workers(cpus: float, workers: int):
    assert elastic.room({"CPU": 1.0}, {"CPU": cpus}) == workers
