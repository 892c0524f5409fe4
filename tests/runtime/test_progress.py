import io
import sys

import pytest

from imagen.errors import StorageError
from runtime import progress
from runtime.log import JsonLog


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True


def on_a_terminal(monkeypatch):
    """Let stderr be a terminal; called in the test, as pytest sets stderr again after fixtures."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return shown


def test_a_bar_counts_up_to_its_total_on_a_terminal(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with progress.bar("encode", 4, "shards") as bar:
        for _ in range(4):
            bar.advance()
    text = terminal.getvalue()
    assert "encode" in text
    assert "4/4" in text
    assert "shards" in text


def test_a_bar_is_silent_when_stderr_is_no_terminal(capfd):
    with progress.bar("encode", 4, "shards") as bar:
        bar.advance(4, "note")
    assert capfd.readouterr() == ("", "")


def test_training_of_two_members_is_shown_side_by_side(monkeypatch, tmp_path):
    terminal = on_a_terminal(monkeypatch)
    paths = {name: str(tmp_path / name / "log.jsonl") for name in ("base", "sr1")}
    with JsonLog(paths["base"]) as log:
        log.write(event="start")
        log.write(images_seen=640, loss=0.25, images_per_s=1234.4)
    progress.follow(paths, {"base": 1280, "sr1": 1280}, lambda: True)
    text = terminal.getvalue()
    assert "train base" in text
    assert "640/1280" in text
    assert "loss 0.2500  1,234 images/s" in text
    assert "train sr1" in text
    assert "0/1280" in text


def test_following_ends_when_the_work_ends_and_is_silent_without_a_terminal(capfd, tmp_path):
    answers = iter([False, True])
    progress.follow({"base": str(tmp_path / "none")}, {"base": 10}, lambda: next(answers))
    assert next(answers, "asked twice") == "asked twice"
    assert capfd.readouterr() == ("", "")


def test_an_event_is_described_by_what_it_has():
    event = {"images_seen": 1000, "loss": 0.5, "images_per_s": 100.0}
    assert progress.describe(event, 8200) == "loss 0.5000  100 images/s  0:01:12 left"
    assert progress.describe({"images_seen": 3, "loss": 0.5}, 10) == "loss 0.5000"
    assert progress.describe({"images_seen": 3}, 10) == ""


def test_the_loss_stays_in_sight_when_a_checkpoint_is_logged(monkeypatch, tmp_path):
    terminal = on_a_terminal(monkeypatch)
    path = str(tmp_path / "log.jsonl")
    with JsonLog(path) as log:
        log.write(images_seen=640, loss=0.25, images_per_s=10.0)
        log.write(event="checkpoint", images_seen=640)
    progress.follow({"base": path}, {"base": 1280}, lambda: True)
    assert "loss 0.2500  10 images/s  0:01:04 left" in terminal.getvalue()


def test_a_store_that_does_not_answer_is_asked_again_and_not_too_often(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setattr(progress, "POLL_S", 0)
    answers = iter([StorageError("503"), [], [{"images_seen": 640, "loss": 0.25}]])
    asked = []

    def new(_):
        asked.append(1)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(progress.log.Follower, "new", new)
    remote = {"base": "memory://run/log.jsonl"}
    ends = iter([False] * 50 + [True])
    progress.follow(remote, {"base": 1280}, lambda: next(ends))
    assert len(asked) == 2  # at once, and at the end
    progress.follow(remote, {"base": 1280}, lambda: True)
    assert "loss 0.2500" in terminal.getvalue()


def test_a_log_that_nobody_sees_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(progress.log.Follower, "new", lambda _: pytest.fail("it was read"))
    progress.follow({"base": str(tmp_path / "log.jsonl")}, {"base": 10}, lambda: True)
