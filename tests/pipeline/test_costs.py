"""What stages took, as their logs tell, and the price table."""

import json
import re

import pytest
import yaml

from imagen.errors import ConfigError
from pipeline import costs, prices
from runtime.state import StageState
from train import flops


def state(status="partial", detail="", outputs=()):
    return StageState(stage="x", status=status, detail=detail, outputs=outputs)


def start(time, workers=1, seen=0, device="cpu"):
    return {"time": time, "event": "start", "images_seen": seen, "world_size": workers,
            "device": device}  # fmt: skip


def line(time, seen, rate, workers=1, mfu=0.25):
    return {"time": time, "images_seen": seen, "images_per_s": rate, "world_size": workers,
            "mfu": mfu, "loss": 0.5}  # fmt: skip


LOG = [
    start(100.0),
    line(110.0, 100, 10.0),
    line(120.0, 200, 10.0),
    start(500.0, workers=4, seen=150, device="cuda:0"),  # died at 120, and came again
    line(510.0, 450, 30.0, workers=4),
    line(520.0, 750, 60.0, workers=4),
]


def test_time_counts_for_each_worker_and_not_while_nothing_ran():
    assert costs.worker_seconds(LOG) == 20 * 1 + 20 * 4
    assert costs.worker_seconds([]) == 0


def test_a_clock_that_was_set_back_takes_nothing_away():
    assert costs.worker_seconds([start(100.0), line(90.0, 10, 1.0), line(95.0, 20, 1.0)]) == 5


def test_a_training_goes_as_fast_as_since_its_last_start():
    found = costs.of_training(LOG, 600, 1000)
    assert found.per_s == pytest.approx(40.0)  # 30 and 60 images/s over as many images
    assert (found.done, found.total, found.workers, found.gpu) == (750, 1000, 4, True)
    assert found.left_s == pytest.approx(250 / 40)
    assert found.worker_s == 100


def test_what_was_trained_after_the_last_checkpoint_and_lost_does_not_count():
    resumed = [*LOG, start(900.0, seen=600)]
    found = costs.of_training(resumed, 600, 1000)
    assert found.done == 600
    assert found.per_s is None
    assert found.left_s is None


def test_a_training_without_a_log_tells_nothing():
    found = costs.of_training([], None, 1000)
    assert (found.done, found.total, found.worker_s, found.left_s) == (0, 1000, None, None)


def shard(time, name, pid, seconds, device="cpu", **whose):
    return {"time": time, "event": "shard", "shard": name, "pid": pid, "seconds": seconds,
            "device": device, **whose}  # fmt: skip


SHARDS = [
    {"time": 0.0, "event": "start", "shards": 8, "left": 8},
    shard(2.0, "00000", 1, 2.0),
    {"time": 50.0, "event": "start", "shards": 8, "left": 7},
    shard(54.0, "00001", 1, 4.0),
    shard(55.0, "00002", 2, 5.0),
    {"time": 55.5, "event": "retry", "tar": "x", "reason": "disk"},
]


def test_shards_that_an_earlier_start_finished_count_as_done():
    found = costs.of_shards(SHARDS, state())
    assert (found.done, found.total, found.unit, found.workers) == (3, 8, "shards", 2)
    assert found.per_s == pytest.approx(2 / 5)
    assert found.worker_s == pytest.approx(11.0)


def test_workers_of_two_machines_are_two_also_with_one_process_id():
    begin = {"time": 0.0, "event": "start", "shards": 8, "left": 8}
    pods = [shard(2.0, f"0000{n}", 300, 2.0, host=host) for n, host in enumerate("abb")]
    assert costs.of_shards([begin, *pods], state()).workers == 2


def test_a_stage_that_is_done_has_all_its_shards_also_without_an_end_in_the_log():
    assert costs.of_shards(SHARDS, state("done")).done == 8
    assert costs.of_shards([], state("done")) == costs.Progress()


def test_an_evaluation_tells_what_it_has_sampled_and_took(tmp_path):
    partial = costs.of_evaluation(state(detail="not finished: 1,040 of 2,000 images sampled"), 2000)
    assert (partial.done, partial.total) == (1040, 2000)
    path = tmp_path / "metrics.json"
    cost = {"seconds": {"sample": 50.0, "measure": 10.0}, "images": 200}

    def found(**crew):
        path.write_text(json.dumps({"cost": {**cost, **crew}}))
        return costs.of_evaluation(state("done", outputs=(str(path),)), 200)

    done = found(actors=4, device="cuda")
    assert (done.per_s, done.workers, done.worker_s, done.gpu) == (4.0, 4, 200.0, True)
    assert not found(actors=4, device="cpu").gpu
    assert found().worker_s is None  # of an older version, or nothing was left to sample
    path.write_text("[")
    assert costs.of_evaluation(state("done", outputs=(str(path),)), 200).worker_s is None


def test_the_table_prices_all_stages_and_knows_the_peaks_of_its_cards():
    table = prices.load()
    for use in prices.NEEDED:
        name, machine = table.of(use)
        assert machine.spot is None or machine.spot < machine.on_demand, name
    for name, machine in table.machines.items():
        assert not machine.card or flops.of_card(machine.card, "bf16"), name


def test_every_kind_of_price_says_where_and_when_it_was_found():
    sources = prices.load().sources
    assert set(sources) == {"machines", "storage_gb_month", "requests"}
    for key in ("machines", "requests"):
        assert sources[key].startswith("https://"), key
        assert re.search(r"looked up 20\d\d-\d\d-\d\d", sources[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uses.train": "a2-higpu"}, "uses.train is 'a2-higpu', which `machines` does not have"),
        ({"machines.e2-standard-4.on_demnd": 1}, "unknown key `machines.e2-standard-4.on_demnd`"),
        ({"machines.e2-standard-4.on_demand": -1}, "not both 0 or more"),
        ({"machines.e2-standard-4.cards": 1}, "give both or none"),
        ({"machines.e2-standard-4.cores": 0}, "a machine with 0 cores"),
        ({"assumed.mfu": 30}, r"mfu 30.0 is not in \(0, 1\]"),
        ({"read_1000": -0.1}, "a price of storage or requests is negative"),
        ({"uses": {"train": "g2-standard-8"}}, "uses says nothing of head, cores, import"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, change, message):
    with open(prices.PATH, encoding="utf8") as file:
        tree = yaml.safe_load(file)
    for dotted, value in change.items():
        *parents, last = dotted.split(".")
        at = tree
        for key in parents:
            at = at[key]
        at[last] = value
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=message):
        prices.load(str(path))


def test_a_machine_that_is_not_in_the_table_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no machine 'a2-higpu-1g'(.|\n)*mean a2-highgpu-1g"):
        prices.load().named("a2-higpu-1g")


def test_worker_hours_cost_their_share_of_a_machine():
    machine = prices.Machine(cores=8, on_demand=4.0, spot=1.0)
    assert prices.spot_and_on_demand(16.0, machine) == {"spot": 2.0, "on_demand": 8.0}
    card = prices.Machine(cores=208, cards=8, card="H100", on_demand=80.0)
    assert prices.spot_and_on_demand(16.0, card) == {"spot": None, "on_demand": 160.0}


def test_a_machine_with_gpus_stands_for_what_gpus_do_one_without_for_all_but_the_head():
    table = prices.load()
    for use in prices.NEEDED:
        gpus, cores = table.of(use, "a3-highgpu-8g")[0], table.of(use, "n2-standard-8")[0]
        assert (gpus == "a3-highgpu-8g") == (use in ("train", "eval", "preencode")), use
        assert (cores == "n2-standard-8") == (use != "head"), use


def test_a_core_of_a_machine_with_gpus_costs_its_share_of_the_cores():
    table = prices.load()
    table.uses["prepare"] = "a3-highgpu-8g"
    _, machine = table.of("prepare")
    cost = prices.spot_and_on_demand(208.0, machine)
    assert cost["on_demand"] == table.machines["a3-highgpu-8g"].on_demand


@pytest.mark.parametrize(
    ("dollars", "told"),
    [(None, "?"), (0.0, "$0.00"), (0.004, "<$0.01"), (0.006, "$0.01"), (1234.5, "$1,234.50")],
)
def test_money_never_looks_like_nothing_when_it_is_something(dollars, told):
    assert prices.money(dollars) == told
