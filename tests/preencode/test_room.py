import pytest

from imagen.config import build
from imagen.errors import ConfigError
from preencode.config import ActorsConfig
from preencode.room import actors_that_fit


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict:
    resources = {"CPU": cpus, "GPU": gpus, "memory": 1.0}
    return {"Alive": alive, "Resources": {k: v for k, v in resources.items() if v}}


@pytest.mark.parametrize(
    ("nodes", "gpus", "fit"),
    [
        ([node(2), node(3.5)], 0.0, 5),
        ([node(16, 2)], 1.0, 2),  # one for each GPU, not one for each core
        ([node(16, 2)], 0.5, 4),
        ([node(16, 2)], 0.4, 4),  # a share is of one GPU
        ([node(16, 1)], 0.1, 10),
        ([node(3, 8)], 0.5, 3),
        ([node(16, 7)], 2.0, 3),
        ([node(64), node(4, 1), node(0, 8)], 1.0, 1),  # core and GPU on one node
        ([node(8), node(8, alive=False)], 0.0, 8),
    ],
)
def test_as_many_actors_fit_as_nodes_have_cores_and_gpus_for(nodes, gpus, fit):
    assert actors_that_fit(nodes, gpus) == fit


@pytest.mark.parametrize("nodes", [[], [node(0, 4)], [node(0.5, 4)], [node(64), node(8, 1)]])
def test_no_room_for_one_actor_is_an_error(nodes):
    with pytest.raises(
        ConfigError, match=r"has 1 CPU and 2 GPUs(.|\n)*hint: set preencode\.gpus_p"
    ):
        actors_that_fit(nodes, 2.0)


def test_one_gpu_and_a_half_is_refused_as_ray_would():
    with pytest.raises(ConfigError, match=r"gpus_per_actor 1\.5 is above 1, but not whole"):
        build(ActorsConfig, {"gpus_per_actor": 1.5})
