import os
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from imagen.errors import StorageError
from preencode import dispatch as module
from preencode.dispatch import TRIES, _death, dispatch

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def worker(cluster):
    import ray

    @ray.remote(max_restarts=0, num_cpus=1)
    class Worker:
        """Ends its own process on items that say so, like an out-of-memory kill would."""

        def who(self) -> int:
            time.sleep(0.2)
            return os.getpid()

        def work(self, item: str) -> str:
            kind, _, marker = item.partition(":")
            if kind == "poison":
                os._exit(1)
            if kind == "once" and not Path(marker).exists():
                Path(marker).touch()
                os._exit(1)
            if kind == "bug":
                raise KeyError("a bug")
            if kind == "slow":
                time.sleep(0.3)
            if kind == "full" and not Path(marker).exists():
                Path(marker).touch()
                return StorageError("the disk is full")
            return StorageError("no bucket") if kind == "never" else item.upper()

    return Worker


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "PAUSES_S", (0.1, 0.3))


def passing(value):
    return value if isinstance(value, StorageError) else None


def run(worker, items, actors=2):
    def call(actor, item, _):
        return actor.work.remote(item)

    return list(dispatch(items, worker.remote, call, lambda: actors, passing))


def test_every_item_is_worked_on_once(worker):
    items = [f"item{i}" for i in range(20)]
    outcomes = run(worker, items)
    assert sorted(o.value for o in outcomes) == sorted(i.upper() for i in items)
    assert all(o.error is None and o.lost is None for o in outcomes)


def test_an_item_that_kills_its_actors_is_set_aside_and_the_others_are_done(worker):
    outcomes = run(worker, ["a", "poison", "slow1", "b", "c", "slow2"])
    done = {o.item for o in outcomes if o.value is not None}
    assert done == {"a", "b", "c", "slow1", "slow2"}
    (failed,) = [o for o in outcomes if o.error is not None]
    assert failed.item == "poison"
    assert f"`poison` is set aside: it ended {TRIES} actors" in failed.error.message
    assert {o.item for o in outcomes if o.lost is not None} == {"poison"}  # nobody else is blamed
    assert sum(o.lost is not None for o in outcomes) == TRIES - 1


def test_an_item_whose_actor_died_once_is_done_by_another(worker, tmp_path):
    item = f"once:{tmp_path}/marker"
    outcomes = run(worker, ["a", item, "b"])
    assert {o.item for o in outcomes if o.value is not None} == {"a", item, "b"}
    assert [o.item for o in outcomes if o.lost is not None] == [item]


def test_what_may_pass_is_tried_again_by_the_same_actors(worker, tmp_path):
    item = f"full:{tmp_path}/marker"
    outcomes = run(worker, ["a", item, "b"])
    assert {o.item for o in outcomes if isinstance(o.value, str)} == {"a", item, "b"}
    (failed,) = [o for o in outcomes if o.failed is not None]
    assert (failed.item, failed.failed.message) == (item, "the disk is full")


def test_what_does_not_pass_is_an_answer_after_three_tries(worker):
    outcomes = run(worker, ["a", "never", "b"])
    assert sum(o.failed is not None for o in outcomes) == TRIES - 1
    (last,) = [o for o in outcomes if isinstance(o.value, StorageError)]
    assert (last.item, last.value.message) == ("never", "no bucket")
    assert {o.item for o in outcomes if isinstance(o.value, str)} == {"a", "b"}


def test_what_may_pass_is_tried_again_after_a_pause(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSES_S", (1.5, 1.5))
    item = f"full:{tmp_path}/marker"
    times = {
        o.value or "failed": time.monotonic()
        for o in dispatch(
            [item, "a"], worker.remote, lambda a, i, _: a.work.remote(i), lambda: 1, passing
        )
    }
    assert times[item.upper()] - times["failed"] > 1.5
    assert times["A"] < times[item.upper()]  # others do not wait


def test_nodes_that_join_are_used(worker):
    room = iter([1, 1, 1])
    outcomes = dispatch(
        [f"slow{i}" for i in range(8)],
        worker.remote,
        lambda actor, *_: actor.who.remote(),
        lambda: next(room, 2),
    )
    assert len({o.value for o in outcomes}) == 2


def test_what_an_actor_is_told_to_read_ahead_is_what_it_gets_next(worker):
    told: dict[int, list] = {}

    def call(actor, item, ahead):
        told.setdefault(id(actor), []).append((item, ahead))
        return actor.work.remote(item)

    items = [f"item{i}" for i in range(20)]
    outcomes = list(dispatch(items, worker.remote, call, lambda: 2))
    assert sorted(o.item for o in outcomes) == sorted(items)
    follow = [pair for calls in told.values() for pair in pairwise(calls)]
    hints = [(first[1], second[0]) for first, second in follow if first[1] is not None]
    assert len(hints) >= 10
    assert all(hint == item for hint, item in hints)


def test_what_a_lost_actor_had_read_ahead_is_not_lost(worker, tmp_path):
    items = [f"once:{tmp_path}/marker", *(f"item{i}" for i in range(9))]
    outcomes = run(worker, items, actors=1)
    assert sorted(o.item for o in outcomes if o.value is not None) == sorted(items)


def test_the_loss_of_a_node_is_nobodys_fault():
    tries: Counter[str] = Counter()
    for _ in range(2 * TRIES):
        outcome = _death("x", "The actor died because its node has died. Node Id: 1", tries)
        assert outcome.lost is not None
    assert not tries["x"]
    assert [_death("x", "Killed.", tries).error is None for _ in range(3)] == [True, True, False]


def test_more_actors_than_cores_do_not_block_the_end(worker):
    items = [f"item{i}" for i in range(6)]
    outcomes = run(worker, items, actors=4)  # two of them wait for a core
    assert len(outcomes) == 6


def wait_for_free_cores() -> None:
    import ray

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline, "an actor still holds its core"
        time.sleep(0.1)


def test_an_exception_in_an_actor_is_raised_with_its_traceback_and_ends_the_actors(worker):
    outcomes = dispatch(
        ["a", "bug", "slow1", "slow2"],
        worker.remote,
        lambda actor, item, _: actor.work.remote(item),
        lambda: 1,
    )
    assert next(outcomes).value == "A"  # what is done stays
    with pytest.raises(KeyError, match="a bug") as caught:
        next(outcomes)
    assert "test_dispatch.py" in str(caught.value.__cause__)
    assert "in work" in str(caught.value.__cause__)
    wait_for_free_cores()


def test_leaving_early_ends_the_actors(worker):
    outcomes = dispatch(
        ["slow1", "slow2", "a"],
        worker.remote,
        lambda actor, item, _: actor.work.remote(item),
        lambda: 2,
    )
    next(outcomes)
    outcomes.close()
    wait_for_free_cores()
