"""The simulation of lost machines against what can be worked out by hand."""

from collections.abc import Iterator
from itertools import islice

import pytest

from benchmarks.preemption import market, report, runs
from benchmarks.preemption.market import HOUR, Event, Market
from benchmarks.preemption.rays import clock
from benchmarks.preemption.runs import Case
from benchmarks.preemption.training import Outcome, Training, Work, simulate

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray's own, in Ray
]

WORK = Work(total=4 * 10_000.0, checkpoint_every=4 * 600.0, start_s=50.0, save_s=2.0)


def play(way: str, *events: Event, work: Work = WORK, workers: int = 4) -> Outcome:
    """Have a training of up to 4 workers, at least 2, live through some events."""
    ups = [Event(0.0, f"m{i}", "up") for i in range(workers)]
    training = Training(work, runs.detect_s(way))
    contender = runs.contender(way, training, 2, 4)
    with clock(contender):
        return simulate(contender, iter(sorted([*ups, *events])), 10**6)


@pytest.mark.parametrize("way", runs.WAYS)
def test_without_preemption_all_time_is_useful_but_the_start(way: str):
    done = play(way)
    first = (
        20.0 if way.startswith("elastic") else 0.0
    )  # the view of Ray's coordinator is renewed each 20 s
    assert done.finished
    assert done.training.starts == 1
    assert done.training.now == pytest.approx(10_000 + 50, abs=first)
    assert done.goodput == pytest.approx(10_000 / done.training.now)
    assert (done.training.lost, done.training.machines_lost) == (0, 0)


def test_a_start_that_costs_nothing_leaves_a_goodput_of_one():
    free = Work(total=4e4, checkpoint_every=1.0, start_s=0.0, save_s=0.0)
    assert play("ours", work=free).goodput == 1.0
    assert runs.on_demand(Case()).goodput == pytest.approx(1.0, abs=1e-3)


def test_a_machine_that_vanishes_costs_the_steps_since_the_checkpoint_and_a_start():
    done = play("ours", Event(1000.0, "m3", "vanished"))
    stepped = 1000.0 - 50.0
    assert done.training.lost == pytest.approx(4 * (stepped - 600.0))
    stood = 3 * (15.0 + 50.0)  # until it is noticed, and the start; by those that are left
    assert done.training.spent["standing"] == pytest.approx(4 * 50.0 + stood)
    left = (WORK.total - 4 * 600.0) / 3
    assert done.training.now == pytest.approx(1000.0 + 15.0 + 50.0 + left)


def test_a_machine_that_is_announced_to_go_costs_a_save_and_a_start():
    done = play("ours", Event(1000.0, "m3", "notice", 1030.0), Event(1030.0, "m3", "gone"))
    assert done.training.lost == 0
    left = (WORK.total - 4 * (1000.0 + 1.0 - 50.0)) / 3
    assert done.training.now == pytest.approx(1000.0 + 1.0 + 2.0 + 50.0 + left)
    assert done.training.spent["idle"] == pytest.approx(30.0 - 3.0)


def test_a_checkpoint_that_takes_longer_than_the_notice_is_lost_with_its_machine():
    slow = Work(total=WORK.total, checkpoint_every=4 * 600.0, start_s=50.0, save_s=20.0)
    notice = Event(1000.0, "m3", "notice", 1015.0), Event(1015.0, "m3", "gone")
    done = play("ours", *notice, work=slow)
    assert done.training.lost == pytest.approx(4 * (1001.0 - 50.0 - 600.0))
    assert play("ours", *notice).training.lost == 0


def test_plain_ray_waits_a_minute_for_a_machine_that_is_gone():
    done = play("elastic", Event(1003.0, "m3", "gone"))
    began = done.training.now - (WORK.total - 4 * 600.0) / 3
    assert began == pytest.approx(1003.0 + 6.5 + 60.0 + 50.0)
    assert done.training.lost == pytest.approx(4 * (1003.0 - 20.0 - 50.0 - 600.0), abs=4 * 20.0)


def test_plain_ray_throws_away_steps_to_grow_and_ours_saves_them():
    late = Event(1000.0, "m3", "up")
    ours, rays = play("ours", late, workers=3), play("elastic", late, workers=3)
    assert ours.training.starts == rays.training.starts == 2
    assert ours.training.lost == 0
    assert rays.training.lost > 0
    assert rays.training.now > ours.training.now


GOES = Event(1003.0, "m3", "notice", 1033.0), Event(1033.0, "m3", "gone")


def test_a_function_that_asks_ray_for_notices_saves_once_and_trains_on():
    # first step at 50; its watcher looks at 50 + 5 n
    done, deaf = play("elastic, asks", *GOES), play("elastic", *GOES)
    saved = 4 * (1005.0 - 50.0)
    assert done.training.lost == pytest.approx(4 * (1033.0 - 1007.0))
    assert deaf.training.lost == pytest.approx(4 * (1033.0 - 50.0 - 600.0))
    began = done.training.now - (WORK.total - saved) / 3
    assert began == pytest.approx(1033.0 + 6.5 + 60.0 + 50.0)  # its view of the machines is of 1020
    assert done.training.starts == deaf.training.starts == 2


def test_a_function_that_asks_saves_in_vain_when_the_notice_is_too_short():
    late = Event(1001.0, "m3", "notice", 1004.0), Event(1004.0, "m3", "gone")
    assert play("elastic, asks", *late).training.lost == play("elastic", *late).training.lost > 0


def test_a_notice_during_a_start_is_saved_for_at_the_first_step():
    early = Event(30.0, "m3", "notice", 90.0), Event(90.0, "m3", "gone")
    done = play("fixed, asks", *early, Event(100.0, "m4", "up"))
    assert done.training.lost == pytest.approx(4 * (90.0 - 50.0 - 2.0))


def test_ray_does_not_grow_while_a_machine_is_going_and_starts_on_none_that_goes():
    grows = Event(1000.0, "m9", "up")
    goes = Event(1005.0, "m1", "notice", 1400.0), Event(1400.0, "m1", "gone")
    calm, waits = play("elastic", grows, workers=3), play("elastic", grows, *goes, workers=3)
    assert calm.training.starts == waits.training.starts == 2
    assert calm.training.spent["idle"] < 20.0  # grown at the look of 1010
    assert waits.training.spent["idle"] > 390.0
    busy = Event(1000.0, "m0", "notice", 9000.0), Event(1001.0, "m1", "gone")
    assert play("fixed", *busy, Event(1100.0, "m9", "up")).training.spent["idle"] > 3 * 7000.0


def test_a_silent_machine_counts_as_there_as_long_as_the_head_is_set_to():
    for way in runs.WAYS:
        assert runs.detect_s(way)["vanished"] == runs.Case().silent_s == 15.0
        assert runs.detect_s(way, runs.UNTUNED_S)["vanished"] == 69.0


def test_costs_are_the_same_in_all_tables():
    results, case = report.Results(0), report.living(4)
    for way in runs.WAYS:
        results.found[way, case] = [_with(0.5), _with(1.0)]
    results.found["calm", report.living(report.LIFETIMES_H[-1])] = [_with(1.0)]
    assert results.cost("fixed", case).mean == pytest.approx(0.4 * (2 + 1) / 2)
    row = report.price_table(results)[2]
    assert row == "| ours | 0.30 | 0.45 | 0.60 | 0.90 | 1.20 | 0.67 |"


def _with(goodput: float) -> Outcome:
    training = Training(WORK, {}, done=goodput)
    training.spent["stepping"] = 1.0
    return Outcome(training, True)


def test_a_fixed_size_waits_for_its_last_machine():
    gone, back = Event(1000.0, "m3", "gone"), Event(5000.0, "m4", "up")
    done = play("fixed", gone, back)
    lost = 4 * (950.0 - 600.0)
    assert done.training.lost == pytest.approx(lost)
    assert done.training.now == pytest.approx(5000.0 + 50.0 + (WORK.total - 4 * 600.0) / 4)
    assert done.training.spent["idle"] == pytest.approx(3 * (4000.0 - 6.5))


def test_growth_waits_until_it_pays_unless_it_is_eager():
    late = Event(1000.0, "m3", "up")
    # a look each 30 s after the first step at 50; its start took 50 s: 0.5 * 3 * 50 worker-seconds
    for way, at in (("eager", 1010.0), ("ours", 1010.0 + 2 * 30.0)):
        done = play(way, late, workers=3)
        left = WORK.total - 3 * (at - 50.0)
        assert done.training.now == pytest.approx(at + 2.0 + 50.0 + left / 4), way


def test_too_few_machines_save_and_are_waited_for():
    events = [Event(1000.0, f"m{i}", "notice", 1030.0) for i in (1, 2, 3)]
    events += [Event(1030.0, f"m{i}", "gone") for i in (1, 2, 3)]
    done = play("ours", *events, Event(3000.0, "m9", "up"))
    assert done.training.lost == 0
    left = (WORK.total - 4 * (1001.0 - 50.0)) / 2
    assert done.training.now == pytest.approx(3000.0 + 50.0 + left)


@pytest.mark.parametrize("way", runs.WAYS)
@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_worker_seconds_are_conserved(way: str, factor: float):
    case = Case(market=Market(lifetime_s=1 * HOUR, slots=6), fewest=2, factor=factor)
    work = runs.run(way, case, 1)
    training = work.training
    there, paid = {}, 0.0
    for event in market.events(case.market, 1):
        if event.at >= training.now:
            break
        if event.kind == "up":
            there[event.node], paid = event.at, paid + case.market.boot_s
        elif event.kind in ("gone", "vanished"):
            paid += event.at - there.pop(event.node)
    paid += sum(training.now - came for came in there.values())
    assert work.paid == pytest.approx(paid)
    assert training.spent["stepping"] == pytest.approx(training.done + training.lost)
    assert training.done == case.work.total
    assert training.machines_lost >= 1000


def test_the_same_seed_is_the_same_world_and_another_seed_another():
    def first(seed: int) -> list[Event]:
        return list(islice(market.events(Market(), seed), 500))

    assert first(3) == first(3)
    assert first(3) != first(4)
    assert [e.at for e in first(3)] == sorted(e.at for e in first(3))


def test_the_market_is_what_it_says():
    calm = Market(lifetime_s=2 * HOUR, stock_every_s=0.0, unannounced=0.2)
    ups: dict[str, float] = {}
    lives, vanished, waits = [], 0, []
    last: dict[str, float] = {}
    for event in _first(market.events(calm, 5), 20_000):
        slot = event.node.split(".")[0]
        if event.kind == "up":
            ups[event.node] = event.at
            waits.append(event.at - last.get(slot, 0.0))
        elif event.kind in ("gone", "vanished"):
            lives.append(event.at - ups[event.node])
            vanished += event.kind == "vanished"
            last[slot] = event.at
        else:
            assert 0 <= event.gone - event.at <= calm.notice_s
    assert sum(lives) / len(lives) == pytest.approx(calm.lifetime_s, rel=0.05)
    assert vanished / len(lives) == pytest.approx(0.2, rel=0.1)
    assert sum(waits) / len(waits) == pytest.approx(calm.boot_s + calm.delay_s, rel=0.05)


def _first(events: Iterator[Event], count: int) -> Iterator[Event]:
    return islice(events, count)


def test_in_a_stock_out_no_machine_is_begun_and_some_are_taken():
    short = Market(stock_every_s=6 * HOUR, lifetime_s=24 * HOUR)
    stock = market.StockOuts(short, 2)
    begin, end = stock.first_end_after(0.0)
    struck = 0
    for event in _first(market.events(short, 2), 200):
        if event.kind == "up":
            assert not begin + short.boot_s < event.at < end + short.boot_s
        elif event.kind in ("gone", "vanished"):
            struck += begin <= event.at <= begin + market.STRIKE_S
    assert 1 <= struck < short.slots
