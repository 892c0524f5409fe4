"""`python -m pipeline status`: what is there, how fast it goes, what it took."""

import argparse
import io
import json
from typing import get_args

import pytest
from rich.console import Console

from imagen import storage
from pipeline import config as configs
from pipeline import prices, stages, status
from pipeline.commands import status as command
from pipeline.costs import Progress
from pipeline.jobs import JobInfo
from runtime import cli, log
from runtime.state import StageState, Status

DIGITS = "pipeline/configs/digits.yaml"


def write_log(folder, member, device="cpu", workers=2, seen=6400):
    events = [
        {"event": "start", "images_seen": 0, "world_size": workers, "device": device},
        {"images_seen": seen // 2, "images_per_s": 160.0, "world_size": workers, "mfu": 0.2},
        {"images_seen": seen, "images_per_s": 160.0, "world_size": workers, "mfu": 0.2},
    ]
    lines = [json.dumps({"time": 1000.0 + 1800 * i, **e}) for i, e in enumerate(events)]
    storage.put(f"{folder}/{member}/log.jsonl", "\n".join(lines).encode() + b"\n")


def look(folder, *overrides, machine=None, jobs=None):
    config = configs.load(DIGITS, [f"out={folder}", *overrides])
    line = stages.line(config)
    found = status.rows(config, line, prices.load(), machine, jobs)
    return {row.state.stage: row for row in found}


def shown(rows, folder, width=100):
    console = Console(width=width, highlight=False, file=io.StringIO())
    console.print(status.table(list(rows.values()), str(folder)))
    return console.file.getvalue()


def job(attempt, state):
    key = f"imagen-train-base-00000000-{attempt}"
    return JobInfo(
        id=key, status=state, started_s=1.0, ended_s=None, message="", config="", exit_status=None
    )


def call(*words):
    parser = argparse.ArgumentParser()
    command.add(parser)
    command.run(cli._parse(parser, words))


def test_a_training_tells_progress_rate_time_left_and_cost(tmp_path):
    write_log(tmp_path, "base")
    row = look(tmp_path)["train base"]
    assert (row.progress.done, row.progress.total) == (6400, 38400)
    assert row.cost.worker_hours == pytest.approx(2.0)  # an hour, two workers
    machine = prices.load().machines["e2-standard-8"]
    assert row.cost.usd["on_demand"] == pytest.approx(2 / 8 * machine.on_demand)
    text = shown({"train base": row}, tmp_path, width=140)
    for told in ("6,400 of 38,400 images (17%)", "160 images/s, 2 workers, 0:03:20 left", "2.0 h"):
        assert told in text


def test_hours_of_gpus_cost_what_the_table_says_of_the_training_machine(tmp_path):
    write_log(tmp_path, "base", device="cuda:0")
    row = look(tmp_path)["train base"]
    assert row.cost.machine == "g2-standard-8"
    assert row.cost.usd["spot"] == pytest.approx(2 * prices.load().machines["g2-standard-8"].spot)
    assert look(tmp_path, machine="a2-highgpu-1g")["train base"].cost.machine == "a2-highgpu-1g"


def test_what_cores_did_is_never_priced_as_gpus_nor_the_other_way_round(tmp_path):
    write_log(tmp_path, "base")
    write_log(tmp_path, "sr1", device="cuda:0")
    for chosen, cores, gpus in (
        ("a3-highgpu-8g", "e2-standard-8", "a3-highgpu-8g"),
        ("n2-standard-8", "n2-standard-8", "g2-standard-8"),
    ):
        rows = look(tmp_path, machine=chosen)
        assert rows["train base"].cost.machine == cores
        assert rows["train sr1"].cost.machine == gpus
    usual, other = look(tmp_path), look(tmp_path, machine="a3-highgpu-8g")
    assert usual["train base"].cost == other["train base"].cost


def test_what_gpus_did_has_no_price_by_a_table_without_them(tmp_path):
    write_log(tmp_path, "base", device="cuda:0")
    config, table = configs.load(DIGITS, [f"out={tmp_path}"]), prices.load()
    table.uses["train"] = "e2-standard-8"
    (row,) = [r for r in status.rows(config, stages.line(config), table) if r.cost]
    assert row.cost.usd == {"spot": None, "on_demand": None}
    assert status.price_range(row.cost.usd) == "?"


def test_an_evaluation_on_gpus_is_priced_by_them(tmp_path):
    (stage,) = [
        s for s in stages.line(configs.load(DIGITS, [f"out={tmp_path}"])) if s.name == "eval"
    ]
    progress = Progress(worker_s=4 * 3600.0, workers=4, gpu=True)
    cost = status._cost(stage, progress, prices.load(), None)
    assert (cost.worker_hours, cost.machine) == (4.0, "g2-standard-8")
    assert cost.usd["spot"] == pytest.approx(4 * prices.load().machines["g2-standard-8"].spot)


def test_the_newest_job_of_a_stage_is_told_beside_it(tmp_path):
    jobs = {"train base": [job(1, "FAILED"), job(2, "RUNNING")]}
    rows = look(tmp_path, jobs=jobs)
    assert rows["train base"].job.id.endswith("-2")
    assert rows["eval"].job is None
    text = shown(rows, tmp_path, width=160)
    assert "imagen-train-base-00000000-2" in text
    assert "RUNNING" in text
    (told,) = [r for r in json.loads(status.as_json(list(rows.values()))) if r["job"]]
    assert (told["stage"], told["job"]["status"]) == ("train base", "RUNNING")


def test_without_a_cluster_no_column_speaks_of_jobs(tmp_path):
    assert "job" not in shown(look(tmp_path), tmp_path).splitlines()[1]


def test_the_table_fits_a_terminal_of_80_columns(tmp_path):
    write_log(tmp_path, "base")
    lines = shown(look(tmp_path), tmp_path, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    for word in ("import", "preencode", "train base", "publish", "missing"):
        assert any(word in line for line in lines), word


def test_the_command_prints_a_json_list_for_programs(tmp_path, capsys):
    write_log(tmp_path, "sr1")
    before = sorted(tmp_path.rglob("*"))
    call(DIGITS, f"out={tmp_path}", "--json")
    told = json.loads(capsys.readouterr().out)
    names = ["import", "preencode", "train base", "train sr1", "eval", "publish"]
    assert [row["stage"] for row in told] == names
    assert {"stage", "status", "detail", "outputs", "progress", "left_s", "cost_usd"} <= set(
        told[0]
    )
    sr1 = told[3]
    assert sr1["progress"]["per_s"] == pytest.approx(160.0)
    assert sr1["worker_hours"] == pytest.approx(2.0)
    assert sorted(tmp_path.rglob("*")) == before  # it only looks


def test_the_command_prints_a_table_and_what_the_costs_are_of(tmp_path, capsys):
    write_log(tmp_path, "base")
    call(DIGITS, f"out={tmp_path}")
    told = capsys.readouterr().out
    assert "train base" in told
    assert "e2-standard-8" in told


def test_a_price_table_of_ones_own_counts(tmp_path, capsys):
    write_log(tmp_path, "base")
    with open(prices.PATH, encoding="utf8") as file:
        text = file.read().replace("on_demand: 0.268046", "on_demand: 80.0")
    storage.put(f"{tmp_path}/mine.yaml", text.encode())
    call(DIGITS, f"out={tmp_path}", "--prices", f"{tmp_path}/mine.yaml", "--json")
    costs = {row["stage"]: row["cost_usd"] for row in json.loads(capsys.readouterr().out)}
    assert costs["train base"]["on_demand"] == pytest.approx(20.0)


def test_without_the_cluster_the_files_are_told_and_that_it_is_not_there(tmp_path, capsys):
    call(DIGITS, f"out={tmp_path}", "--address", "http://127.0.0.1:9", "--json")
    told = capsys.readouterr()
    assert "without jobs: no Ray cluster takes jobs at `http://127.0.0.1:9`" in told.err
    assert [row["job"] for row in json.loads(told.out)] == [None] * 6


def test_a_log_that_is_being_written_is_read_as_far_as_it_goes(tmp_path):
    with log.JsonLog(f"{tmp_path}/base/log.jsonl") as events:
        events.write(event="start", images_seen=0, world_size=1, device="cpu")
        events.write(images_seen=320, images_per_s=100.0, world_size=1)
    with open(tmp_path / "base/log.jsonl", "ab") as file:
        file.write(b'{"time": 1, "images_se')
    assert look(tmp_path)["train base"].progress.done == 320


STATES = [
    StageState(stage="import", status="done", detail="1,797 samples", outputs=("runs/data",)),
    StageState(stage="train base", status="partial", detail="[300 of 600]"),
]
ROWS = [status.Row(state=state, progress=Progress(), cost=None, job=None) for state in STATES]


def test_the_table_takes_details_literally_and_shortens_paths():
    text = shown({row.state.stage: row for row in ROWS}, "runs")
    assert "1,797 samples" in text
    assert "[300 of 600]" in text
    assert "runs/data" not in text


def test_the_fields_for_programs_that_there_always_were_are_there():
    told = json.loads(status.as_json(ROWS))[0]
    wanted = {
        "stage": "import",
        "status": "done",
        "detail": "1,797 samples",
        "outputs": ["runs/data"],
    }
    assert wanted.items() <= told.items()


def test_every_status_has_a_colour():
    assert set(status.COLOURS) == set(get_args(Status))
