import json
import threading
import uuid

import pytest

from imagen import storage
from imagen.errors import StorageError
from runtime import log
from runtime.log import JsonLog


@pytest.fixture(params=["local", "memory"])
def path(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "deep/log.jsonl")
    return f"memory://{uuid.uuid4().hex}/log.jsonl"


def test_events_are_read_back_in_order_with_their_time(path):
    with JsonLog(path) as events:
        events.write(images_seen=32, loss=0.5)
        events.write(event="checkpoint")
    first, second = log.read(path)
    assert (first["images_seen"], first["loss"], second["event"]) == (32, 0.5, "checkpoint")
    assert 1.7e9 < first["time"] <= second["time"]


def test_a_log_goes_on_where_the_last_run_ended(path):
    for number in range(3):
        with JsonLog(path) as events:
            events.write(run=number)
    assert [event["run"] for event in log.read(path)] == [0, 1, 2]


def test_a_local_event_can_be_read_while_the_log_is_open(tmp_path):
    with JsonLog(str(tmp_path / "log.jsonl")) as events:
        events.write(step=1)
        assert len(log.read(events.path)) == 1


def test_a_line_that_a_killed_writer_left_torn_costs_that_line_only(path):
    storage.put(path, b'{"time": 1, "step": 1}\n{"time": 2, "st')
    with JsonLog(path) as events:
        events.write(step=3)
    assert [event["step"] for event in log.read(path)] == [1, 3]


def test_a_missing_log_has_no_events(path):
    assert log.read(path) == []


def test_a_bucket_that_is_away_for_a_moment_costs_no_line_and_no_run(monkeypatch):
    path = f"memory://{uuid.uuid4().hex}/log.jsonl"
    monkeypatch.setattr(log, "REMOTE_EVERY_S", 0.0)
    put = storage.put

    def away(*_, **__):
        raise StorageError("the bucket does not answer")

    with JsonLog(path) as events:
        monkeypatch.setattr(storage, "put", away)
        events.write(number=1)
        monkeypatch.setattr(storage, "put", put)
        events.write(number=2)
        assert [e["number"] for e in log.read(path)] == [1, 2]


def test_a_remote_log_is_published_while_it_grows(monkeypatch):
    monkeypatch.setattr(log, "REMOTE_EVERY_S", 0.0)
    path = f"memory://{uuid.uuid4().hex}/log.jsonl"
    events = JsonLog(path)
    events.write(step=1)
    events.write(step=2)
    assert [event["step"] for event in log.read(path)] == [1, 2]
    assert [json.loads(line)["step"] for line in storage.get(path).splitlines()] == [1, 2]


def test_what_was_written_can_be_published_at_any_time_by_any_thread(path):
    events = JsonLog(path)
    for step in range(3):
        events.write(step=step)
        thread = threading.Thread(target=events.flush)
        thread.start()
        thread.join()
        assert [event["step"] for event in log.read(path)] == list(range(step + 1))
    events.close()
    events.flush()  # nothing is left
    assert len(log.read(path)) == 3


def test_lines_that_come_while_a_log_is_published_wait_for_the_next_time(monkeypatch):
    path = f"memory://{uuid.uuid4().hex}/log.jsonl"
    events, put = JsonLog(path), storage.put
    monkeypatch.setattr(log, "REMOTE_EVERY_S", 0.0)

    def slow(where, data):
        monkeypatch.setattr(storage, "put", put)
        events.write(step=1)  # as training does: it does not wait
        put(where, data)

    events._lines.append(b'{"step": 0}\n')
    monkeypatch.setattr(storage, "put", slow)
    events.flush()
    assert [event["step"] for event in log.read(path)] == [0]
    events.flush()
    assert [event["step"] for event in log.read(path)] == [0, 1]


def test_a_follower_sees_each_event_once_and_a_line_only_when_it_is_whole(path):
    follower = log.Follower(path)
    assert follower.new() == []
    storage.put(path, b'{"step": 1}\n{"step": 2}\n{"st')
    assert [event["step"] for event in follower.new()] == [1, 2]
    assert follower.new() == []
    storage.put(path, b'{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert [event["step"] for event in follower.new()] == [3]


def test_a_loss_that_is_no_number_is_null_and_the_line_stays_json(tmp_path):
    path = f"{tmp_path}/log.jsonl"
    with log.JsonLog(path) as events:
        events.write(loss=float("nan"), grad_norm=float("inf"), lr=0.5)
    (event,) = log.read(path)
    assert (event["loss"], event["grad_norm"], event["lr"]) == (None, None, 0.5)
