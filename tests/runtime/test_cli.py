import os
import signal
import subprocess
import sys
import time

import pytest

from imagen.errors import ConfigError, ShardError
from runtime import cli

PROGRAM = """
import os, signal, sys, time
from imagen.errors import ConfigError
from runtime import cli
def run(args):
    {body}
cli.main(run, cli.stage_parser("python -m x", "Do x.", "examples"))
"""


def program(body):
    """Return the command line of a stage program whose work is `body`."""
    return [sys.executable, "-c", PROGRAM.format(body=body)]


def call(body, *arguments):
    return subprocess.run([*program(body), *arguments], capture_output=True, text=True, timeout=60)


def test_a_users_error_is_told_without_a_traceback_and_exits_with_2():
    done = call('raise ConfigError("lr -1 is below 0", "use 1e-4")', "c.yaml")
    assert done.returncode == 2
    assert done.stderr == "error: lr -1 is below 0\n\nhint: use 1e-4\n"


def test_a_bug_keeps_its_traceback():
    done = call("1 / 0", "c.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_stage_that_ends_well_exits_with_0_or_with_what_it_returns():
    assert call("pass", "c.yaml").returncode == 0
    assert call("return 3", "c.yaml").returncode == 3


def test_a_closed_pipe_is_no_error():
    first_line = f'{sys.executable} -c "$0" c.yaml | head -1'
    body = "[print(i) for i in range(100000)]"
    done = subprocess.run(
        ["bash", "-c", f"{first_line}; exit ${{PIPESTATUS[0]}}", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_runs_the_cleanup_and_exits_with_130(number):
    body = (
        "try: print('up', flush=True), time.sleep(60)\n    finally: print('cleaned up', flush=True)"
    )
    process = subprocess.Popen(
        [*program(body), "c.yaml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "cleaned up\n")
    assert "run the same command again to continue" in err


def parse(*words):
    return cli._parse(cli.stage_parser("x", "d", "e"), list(words))


def test_overrides_may_stand_before_and_behind_options():
    args = parse("c.yaml", "a=1", "--dry-run", "b.c=2", "--address", "h:1", "d=3")
    assert (args.config, args.overrides) == ("c.yaml", ["a=1", "b.c=2", "d=3"])
    assert (args.dry_run, args.address) == (True, "h:1")


@pytest.mark.parametrize("words", [["c.yaml", "--dryrun"], ["c.yaml", "--dry-run", "x"], []])
def test_words_that_mean_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_users_error_is_found_behind_others():
    inner = ShardError("tar 3 is torn")
    chained = RuntimeError("task failed")
    chained.__cause__ = inner
    worker = RuntimeError("group failed")
    worker.worker_failures = {0: ValueError("peer died"), 1: chained}
    assert cli.user_error(worker) is inner
    assert cli.user_error(ValueError("a bug")) is None


def test_a_cycle_of_causes_ends():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert cli.user_error(first) is None


PARENT = """
import os, subprocess, sys, time
from runtime import cli
child = subprocess.Popen(sys.argv[1:], env={**os.environ, cli.PARENT: str(os.getpid())})
time.sleep(60)
"""


def test_a_stage_does_not_outlive_the_pipeline_that_started_it():
    child = program("print(os.getpid(), flush=True), time.sleep(60)")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *child, "c.yaml"], stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert gone_within(pid, 10.0)


def gone_within(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_stage_whose_parent_is_gone_before_it_starts_does_nothing():
    done = subprocess.run(
        [*program("time.sleep(5), print('worked')"), "c.yaml"],
        env={**os.environ, cli.PARENT: "1"} if os.getpid() != 1 else os.environ,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_errors_that_crossed_pickling_are_still_the_users():
    import pickle

    err = pickle.loads(pickle.dumps(ConfigError("a", "b")))
    assert cli.user_error(err) is err
