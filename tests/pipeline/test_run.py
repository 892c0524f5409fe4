"""The runner with real child processes: small programs instead of stages, no Ray."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from imagen.errors import StorageError
from pipeline import run as runner
from pipeline.stages import Stage, Training
from runtime.state import StageState, lock

ADDRESS = "127.0.0.1:1"  # given, so that no Ray is started; these programs use none
FENCED = {"CPU": 2.0, "imagen_base": 1.0, "imagen_sr1": 1.0}


class Line:
    """A line of small programs in one folder; a stage is done when its file is there."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.stages = []

    def add(self, name, code="", after=(), member=None):
        mark = self.folder / f"{name}.done"
        ends = f"open({str(mark)!r}, 'a').write('once ')"
        training = Training(member=member, log=str(self.folder / f"{member}.jsonl"), images=10)

        def state():
            status = "done" if mark.exists() else "missing"
            return StageState(stage=name, status=status, detail=f"{status} here")

        self.stages.append(
            Stage(
                name=name,
                arguments=("-c", f"{textwrap.dedent(code)}\n{ends}"),
                after=after,
                state=state,
                training=training if member else None,
            )
        )

    def run(self, out=None, resources=FENCED):
        return runner.run(self.stages, out or str(self.folder), ADDRESS, lambda _: resources)

    def runs(self, name):
        mark = self.folder / f"{name}.done"
        return mark.read_text().split().count("once") if mark.exists() else 0


@pytest.fixture
def made(tmp_path):
    return Line(tmp_path)


def test_stages_run_in_order_and_a_second_run_does_nothing_twice(made, capsys):
    made.add("first")
    made.add("second", f"assert open({str(made.folder / 'first.done')!r}).read()", ("first",))
    outcome = made.run()
    assert (list(outcome.seconds), outcome.failed) == (["first", "second"], {})
    again = made.run()
    assert (again.seconds, again.failed) == ({}, {})
    assert (made.runs("first"), made.runs("second")) == (1, 1)
    assert "first: done already (done here)" in capsys.readouterr().err


def test_a_finished_line_does_not_start_ray(made, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made.add("only")
    made.run()

    def started(**_):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(runner.session, "connect", started)
    assert runner.run(made.stages, str(made.folder)).seconds == {}


def test_every_stage_is_told_the_ray_of_the_pipeline(made):
    made.add("only", f"import os\nassert os.environ['RAY_ADDRESS'] == {ADDRESS!r}")
    assert made.run().failed == {}


def test_a_failed_stage_stops_the_line_and_its_status_is_kept(made, capfd):
    made.add("first", "import sys\nprint('no space', file=sys.stderr)\nsys.exit(2)")
    made.add("second", after=("first",))
    outcome = made.run()
    assert outcome.failed == {"first": 2}
    assert made.runs("second") == 0
    told = capfd.readouterr().err
    assert "no space" in told
    assert "first: failed with status 2" in told


SLOW = """
import time
time.sleep(1.0)
"""
FAILS = """
for i in range(100):
    print("line", i)
raise SystemExit("error: lr 1e9 is too high")
"""


def test_side_by_side_a_failed_stage_shows_its_last_lines_and_the_other_finishes(made, capfd):
    made.add("train base", FAILS, member="base")
    made.add("train sr1", SLOW, member="sr1")
    made.add("eval", after=("train base", "train sr1"))
    outcome = made.run()
    assert outcome.failed == {"train base": 1}
    assert (made.runs("train sr1"), made.runs("eval")) == (1, 0)
    out, told = capfd.readouterr()
    assert "error: lr 1e9 is too high" in told
    assert "line 99" in told
    assert "line 80" not in told
    assert "train base: failed; the others go on" in told
    assert out == ""
    log = (made.folder / "logs" / "train-base.log").read_text()
    assert log.startswith("line 0\n")


def test_side_by_side_both_are_at_work_at_the_same_time(made):
    wait = """
    import pathlib, time
    folder = pathlib.Path({folder!r})
    (folder / {me!r}).touch()
    end = time.monotonic() + 30
    while not (folder / {other!r}).exists():
        assert time.monotonic() < end, "the other did not start"
        time.sleep(0.02)
    """
    folder = str(made.folder)
    made.add("train base", wait.format(folder=folder, me="a", other="b"), member="base")
    made.add("train sr1", wait.format(folder=folder, me="b", other="a"), member="sr1")
    assert made.run().failed == {}


def test_on_a_cluster_without_fences_trainings_run_one_after_the_other(made, capsys):
    alone = f"""
    import os
    os.mkdir({str(made.folder / "busy")!r})
    {{}}
    os.rmdir({str(made.folder / "busy")!r})
    """
    made.add("train base", alone.format("import time; time.sleep(0.3)"), member="base")
    made.add("train sr1", alone.format(""), member="sr1")
    made.add("eval", after=("train base", "train sr1"))
    outcome = made.run(resources={"CPU": 64.0, "imagen_base": 4.0})
    assert (list(outcome.seconds), outcome.failed) == (["train base", "train sr1", "eval"], {})
    assert "no resources imagen_base, imagen_sr1" in capsys.readouterr().err


def test_the_one_training_that_is_left_writes_to_the_terminal(made, capfd):
    made.add("train base", "print('hello')", member="base")
    made.add("train sr1", member="sr1")
    (made.folder / "train sr1.done").touch()
    assert made.run().failed == {}
    assert capfd.readouterr().out == "hello\n"


def test_a_stage_that_dies_of_a_signal_is_told_as_such(made, capsys):
    made.add("only", "import os\nos.kill(os.getpid(), 9)")
    assert made.run().failed == {"only": -9}
    assert "failed with signal 9" in capsys.readouterr().err


def test_logs_of_a_remote_line_end_up_there(made):
    from imagen import storage

    made.add("train base", "print('hello')", member="base")
    made.add("train sr1", member="sr1")
    made.run("memory://remote-logs")
    assert storage.get("memory://remote-logs/logs/train-base.log") == b"hello\n"


def test_a_second_pipeline_on_the_same_folder_is_refused(made):
    made.add("only")
    with (
        lock(str(made.folder / "logs")),
        pytest.raises(StorageError, match=f"in use by process {os.getpid()}"),
    ):
        made.run()
    assert made.runs("only") == 0


def test_a_stage_that_somebody_else_runs_is_not_run_again(made):
    running = StageState(stage="x", status="running", detail="process 17")
    made.stages.append(Stage(name="x", arguments=("-c", ""), state=lambda: running))
    with pytest.raises(StorageError, match="x is being run by another process: process 17"):
        made.run()


def test_the_dry_run_says_what_would_run_and_why(made):
    made.add("first")
    made.add("second", after=("first",))
    (made.folder / "first.done").touch()
    assert runner.dry_run(made.stages).splitlines()[:2] == [
        "first   skip: done",
        "second  run:  missing: missing here",
    ]
    assert os.listdir(made.folder) == ["first.done"]


PIPELINE = """
import argparse, os, sys
from pipeline import run as runner
from pipeline.stages import Stage, Training
from runtime import cli
from runtime.state import StageState
CHILD = '''
import argparse, os, sys, time
from runtime import cli
def work(args):
    print("pid", os.getpid(), flush=True)
    try:
        time.sleep(60)
    finally:
        open(sys.argv[1] + str(os.getpid()), "w").write("cleaned up")
cli.main(work, argparse.ArgumentParser())
'''.replace("sys.argv[1]", repr(sys.argv[1]))
missing = StageState(stage="x", status="missing", detail="x")
stages = [
    Stage(name=m, arguments=("-c", CHILD), state=lambda: missing,
          training=Training(member=m, log="/none", images=1))
    for m in ("base", "sr1")
]
def run(args):
    fences = {"imagen_base": 1.0, "imagen_sr1": 1.0}
    runner.run(stages, args.out, "127.0.0.1:1", lambda _: fences)
parser = argparse.ArgumentParser()
parser.add_argument("out")
cli.main(run, parser)
"""


@pytest.fixture
def at_work(tmp_path):
    """A pipeline process with two stages side by side, and the processes of the two."""
    pipeline = subprocess.Popen(
        [sys.executable, "-c", PIPELINE, f"{tmp_path}/"], stderr=subprocess.PIPE, text=True
    )
    logs = [tmp_path / "logs" / f"{member}.log" for member in ("base", "sr1")]
    end = time.monotonic() + 30
    while not all(log.exists() and "\n" in log.read_text() for log in logs):
        assert time.monotonic() < end, "the stages did not start"
        time.sleep(0.05)
    yield pipeline, [int(log.read_text().split()[1]) for log in logs]
    pipeline.kill()
    pipeline.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_both_stages_clean_up(at_work, tmp_path, number):
    pipeline, children = at_work
    pipeline.send_signal(number)
    told = pipeline.communicate(timeout=20)[1]
    assert pipeline.returncode == 130
    assert "run the same command again to continue" in told
    for pid in children:
        assert (tmp_path / str(pid)).read_text() == "cleaned up"


def test_kill_9_of_the_pipeline_leaves_no_stage_behind(at_work):
    pipeline, children = at_work
    pipeline.kill()
    pipeline.wait()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in children):
        assert time.monotonic() < end, "a stage outlived its pipeline"
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
