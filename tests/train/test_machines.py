import socket
from collections.abc import Iterator

import pytest

from train import machines, tasks
from train.machines import Node

ONE = {"CPU": 1.0}


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def described(name: str, port: int, alive: bool = True, **more: float) -> dict:
    where = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": 4.0, **more}, **where}


def test_room_is_what_nobody_uses_on_nodes_that_answer_and_stay(port: int):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = closed.getsockname()[1]
    nodes = [
        described("good", port),
        described("leaving", port),
        described("silent", gone),
        described("dead", port, alive=False),
        described("other", port, True, **{tasks.FENCE: 1.0}),
    ]
    free = {name: {"CPU": 3.0} for name in ("good", "leaving", "silent", "dead", "other")}
    found = machines.survey(nodes, free, {"leaving"}, {"good": {"CPU": 1.0}})
    assert [node.trouble for node in found] == [
        *("", "is being drained", "does not answer", "is kept for validation")
    ]
    assert [node.room(ONE) for node in found] == [4, 0, 0, 0]
    assert [node.size(ONE) for node in found] == [4, 0, 0, 0]


def test_a_node_without_word_of_what_is_free_has_no_room(port: int):
    (node,) = machines.survey([described("new", port)], {}, (), {})
    assert (node.room(ONE), node.size(ONE)) == (0, 4)


@pytest.mark.parametrize(
    ("there", "wants", "workers"),
    [
        ({"CPU": 7.9}, ONE, 7),
        ({"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, 2),
        ({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}, 0),
        ({"CPU": 0.9999999}, ONE, 1),  # what is left of a sum of floats
    ],
)
def test_workers_are_counted_whole(there: dict, wants: dict, workers: int):
    assert machines.fits(there, wants) == workers


def test_what_is_in_the_way_of_more_workers_is_told():
    wants = {"CPU": 2.0, "GPU": 1.0}
    total = {"CPU": 8.0, "GPU": 2.0}
    nodes = [
        Node("a", "10.0.0.1", total, {"CPU": 8.0}),
        Node("b", "10.0.0.2", total, {"CPU": 3.0, "GPU": 2.0}),
        Node("c", "10.0.0.3", total, total, "is being drained"),
        Node("d", "10.0.0.4", {"CPU": 1.0}, {}),  # too small in any case: no word of it
    ]
    assert machines.told(nodes, wants) == (
        "there is room for 1; 10.0.0.3 is being drained; others use 2 of 2 GPU of 10.0.0.1; "
        "others use 5 of 8 CPU of 10.0.0.2"
    )
