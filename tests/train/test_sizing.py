"""Laws of what a run decides about its size."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import machines, sizing
from train.machines import Node
from train.sizing import Held, Resize, Save, Seen, Start, Stay, Wait

WANTS = {"CPU": 2.0, "GPU": 1.0}


@st.composite
def nodes(draw: Any) -> list[Node]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        total = {"CPU": draw(st.integers(0, 16)) / 1.0, "GPU": draw(st.integers(0, 4)) / 1.0}
        free = {name: amount * draw(st.integers(0, 2)) / 2 for name, amount in total.items()}
        trouble = draw(st.sampled_from(["", "", "", "is being drained", "does not answer"]))
        found.append(Node(f"n{number}", f"10.0.0.{number}", total, free, trouble))
    return found


@st.composite
def seen(draw: Any) -> Seen:
    fewest = draw(st.integers(1, 6))
    machines_there = draw(nodes())
    reserved = draw(st.none() | st.just([node.total for node in machines_there]) | st.just([]))
    return Seen(
        nodes=machines_there,
        wants=WANTS,
        fewest=fewest,
        most=fewest + draw(st.integers(0, 8)),
        reserved=reserved,
    )


@st.composite
def groups(draw: Any) -> Held:
    names = st.sampled_from([f"n{number}" for number in range(6)])
    return Held(
        workers=draw(st.integers(1, 12)),
        going=draw(st.dictionaries(names, st.floats(0, 1e9), max_size=3)),
        saved_for=draw(st.sets(names)),
        unused=draw(st.floats(0, 1e6)),
        restart_s=draw(st.none() | st.floats(0, 1e4)),
    )


def on(free: int, most: int = 8, fewest: int = 2, busy: int = 0) -> Seen:
    """Return nodes of one worker each: some are free, somebody else uses some."""
    made = [Node(f"n{i}", f"10.0.0.{i}", WANTS, WANTS if i < free else {}) for i in range(8)]
    return Seen(nodes=made[: free + busy], wants=WANTS, fewest=fewest, most=most)


def calm(workers: int, **more: Any) -> Held:
    return Held(**{"workers": workers, "going": {}, "unused": 1e9, "restart_s": 30.0} | more)


@settings(max_examples=150, deadline=None)
@given(seen(), groups(), st.floats(0, 100))
def test_a_size_is_one_that_is_wanted_and_fits_on_nodes_without_trouble(
    view: Seen, held: Held, waited_s: float
):
    fits = sum(machines.fits(node.free, WANTS) for node in view.nodes if not node.trouble)
    for decision in (sizing.starting(view, waited_s), sizing.running(view, held)):
        if isinstance(decision, Start | Resize):
            assert view.fewest <= decision.workers <= min(view.most, fits)
            if view.reserved is not None:
                kept = sum(machines.fits(there, WANTS) for there in view.reserved)
                assert decision.workers <= kept


@settings(max_examples=150, deadline=None)
@given(seen(), st.floats(0, 100))
def test_a_run_starts_exactly_when_there_is_room_and_nothing_more_to_hope_for(
    view: Seen, waited_s: float
):
    decision = sizing.starting(view, waited_s)
    patient = waited_s < sizing.PATIENCE_S
    may = view.room >= view.fewest and (not patient or view.room >= min(view.size, view.most))
    assert decision == Start(view.room) if may else isinstance(decision, Wait)
    if isinstance(decision, Wait):
        assert decision.told == ("" if patient else machines.told(view.nodes, WANTS))


@settings(max_examples=150, deadline=None)
@given(seen(), groups())
def test_a_healthy_group_is_disturbed_only_to_leave_nodes_or_to_grow(view: Seen, held: Held):
    decision = sizing.running(view, held)
    if isinstance(decision, Resize):
        if decision.reason == "resize":
            assert not held.going
            assert decision.workers > held.workers
            assert held.may_grow
        else:
            assert held.going
    elif isinstance(decision, Save):
        assert view.room < view.fewest
        assert held.going.keys() - held.saved_for
        assert decision.gone == max(held.going.values())
    else:
        assert decision == Stay()
        assert not held.going or view.room < view.fewest


@settings(max_examples=150, deadline=None)
@given(seen(), groups(), st.integers(0, 4))
def test_more_room_never_makes_a_run_smaller(view: Seen, held: Held, extra: int):
    more = [Node(f"x{i}", f"10.0.1.{i}", WANTS, WANTS) for i in range(extra)]
    wider = Seen(
        nodes=[*view.nodes, *more],
        wants=WANTS,
        fewest=view.fewest,
        most=view.most,
        reserved=None if view.reserved is None else [*view.reserved, *(n.total for n in more)],
    )
    before, after = sizing.running(view, held), sizing.running(wider, held)
    if isinstance(before, Resize):
        assert isinstance(after, Resize)
        assert after.workers >= before.workers
    patient, start = sizing.starting(view, 60.0), sizing.starting(wider, 60.0)
    if isinstance(patient, Start):
        assert isinstance(start, Start)
        assert start.workers >= patient.workers


def test_a_start_waits_a_little_for_machines_in_use_and_then_takes_what_is_free():
    assert sizing.starting(on(3, busy=2), 0.0) == Wait("")
    assert sizing.starting(on(3, busy=2), sizing.PATIENCE_S) == Start(3)
    assert sizing.starting(on(3), 0.0) == Start(3)
    assert sizing.starting(on(5, most=3, busy=2), 0.0) == Start(3)


def test_a_run_tells_what_it_waits_for():
    decision = sizing.starting(on(1, busy=1), 60.0)
    assert isinstance(decision, Wait)
    assert decision.told == ("there is room for 1; others use 2 of 2 CPU, 1 of 1 GPU of 10.0.0.1")


def test_a_group_leaves_nodes_that_go_and_takes_all_that_is_free_with_it():
    held = calm(3, going={"gone": 5.0}, unused=0.0, restart_s=None)
    assert sizing.running(on(6), held) == Resize(6, "preemption")
    assert sizing.running(on(2), held) == Resize(2, "preemption")


def test_a_group_too_small_without_its_nodes_saves_once_for_each():
    held = calm(2, going={"a": 5.0, "b": 9.0})
    assert sizing.running(on(1), held) == Save(9.0)
    again = calm(2, going={"a": 5.0, "b": 9.0}, saved_for={"a", "b"})
    assert sizing.running(on(1), again) == Stay()
    another = calm(2, going={"a": 5.0, "b": 9.0, "c": 7.0}, saved_for={"a", "b"})
    assert sizing.running(on(1), another) == Save(9.0)


@pytest.mark.parametrize("workers", [1, 4, 15])
@pytest.mark.parametrize("restart_s", [1.0, 30.0, 600.0])
def test_a_group_grows_once_unused_room_has_cost_its_share_of_a_restart(workers, restart_s):
    enough = sizing.WORTH * workers * restart_s
    assert calm(workers, unused=enough, restart_s=restart_s).may_grow
    assert not calm(workers, unused=0.999 * enough, restart_s=restart_s).may_grow


def test_a_group_that_took_no_step_yet_does_not_grow():
    assert sizing.running(on(8), calm(3, restart_s=None)) == Stay()
    assert sizing.running(on(8), calm(3)) == Resize(8, "resize")


def test_unused_room_is_counted_in_worker_seconds_and_never_less_than_none():
    assert sizing.unused(on(8), 5, 30.0) == 90.0
    assert sizing.unused(on(8, most=6), 5, 30.0) == 30.0
    assert sizing.unused(on(3), 5, 30.0) == 0.0


def test_a_look_is_due_after_a_while_and_at_once_when_a_node_goes():
    assert sizing.is_due(30.0, 30.0, ())
    assert not sizing.is_due(29.9, 30.0, ())
    assert sizing.is_due(0.0, 30.0, {"n1"})
