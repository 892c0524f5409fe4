import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from imagen.errors import ConfigError
from runtime import session
from runtime.state import is_locked, lock

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


JOIN = """
import os
from imagen.errors import ConfigError
from runtime import session
with session.connect() as address:
    import ray
    @ray.remote(num_cpus=0)
    def where():
        import runtime.state
        return os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"], os.environ["MARK"]
    print(address, *ray.get(where.remote()), ray.cluster_resources()["imagen_base"])
"""


def test_other_processes_join_a_local_ray_by_its_address_and_all_of_it_goes_away(monkeypatch):
    import ray

    monkeypatch.setenv("MARK", uuid.uuid4().hex)  # workers have the environment of who started Ray
    with session.connect(num_cpus=1, resources={"imagen_base": 2}) as address:
        folder = Path(ray.get_runtime_context().get_temp_dir())
        assert folder.name.startswith("imagen-ray-")
        assert is_locked(str(folder)) == os.getpid()
        done = subprocess.run(
            [sys.executable, "-c", JOIN],
            env={**os.environ, "RAY_ADDRESS": address, "MARK": "mine"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.split() == [address, "false", os.environ["MARK"], "2.0"], done.stderr
        assert "authentication" not in done.stderr
    assert not ray.is_initialized()
    assert not folder.exists()


START = """
import subprocess, sys, time
from imagen.errors import ConfigError
from runtime import session
with session.connect(num_cpus=1):
    import ray
    @ray.remote(num_cpus=0)
    class Actor:
        def pid(self):
            import os
            return os.getpid()
    actor = Actor.remote()
    worker = ray.get(actor.pid.remote())
    folder = ray.get_runtime_context().get_temp_dir()
    print(folder, worker, *processes(folder), flush=True)
    time.sleep(120)
"""
PROCESSES = """
from pathlib import Path
def processes(folder):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            pass  # it has ended
    return found
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_killed_driver_takes_its_local_ray_with_it_and_its_folder_is_swept_later():
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESSES + START], stdout=subprocess.PIPE, text=True
    )
    folder, *pids = process.stdout.readline().split()
    assert len(pids) > 3  # a worker, and the servers of Ray
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert alive_after([int(pid) for pid in pids], 60.0) == []
    assert os.path.isdir(folder)
    assert session.sweep_local(older_than_s=0) >= 1
    assert not os.path.exists(folder)


def alive_after(pids, seconds):
    """Return which processes are left, at the latest after `seconds`."""
    end = time.monotonic() + seconds
    while pids and time.monotonic() < end:
        time.sleep(0.2)
        pids = [pid for pid in pids if is_alive(pid)]
    return pids


def is_alive(pid):
    """Tell whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_in_use_or_fresh_is_not_swept():
    mine = Path(tempfile.mkdtemp(prefix=session.LOCAL_PREFIX, dir="/tmp"))
    session.sweep_local(older_than_s=0)
    assert mine.is_dir()  # nobody locked it ever: it is another Ray's, or about to be locked
    with lock(str(mine)):
        session.sweep_local(older_than_s=0)
        assert mine.is_dir()
    session.sweep_local(older_than_s=0)
    assert not mine.exists()


def test_sigterm_still_means_what_the_program_says_after_ray_is_there():
    code = """
import argparse, os, signal, time
from runtime import cli, session
def run(args):
    with session.connect(num_cpus=1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
cli.main(run, argparse.ArgumentParser())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (
        130,
        "interrupted: run the same command again to continue\n",
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_where_no_ray_is_is_an_error_that_names_it(address):
    with (
        pytest.raises(ConfigError, match=f"no Ray cluster answers at `{address}`") as caught,
        session.connect(address),
    ):
        pass
    assert "--address" in caught.value.hint


def test_settings_are_defaults_that_the_environment_overrides(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.delenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", raising=False)
    session.settings()
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] == "600"


def test_a_slow_registration_is_tried_again_and_other_errors_are_not(monkeypatch):
    import ray

    tries = []

    def init(*_, **__):
        tries.append(1)
        raise Exception(error)

    monkeypatch.setattr(ray, "init", init)
    error = "The current node timed out during startup. This could happen because …"
    with pytest.raises(Exception, match="timed out during startup"):
        session._start("/tmp/none")
    assert len(tries) == session.ATTEMPTS
    error = "No space left on device"
    with pytest.raises(Exception, match="No space left"):
        session._start("/tmp/none")
    assert len(tries) == session.ATTEMPTS + 1


def test_a_failure_inside_keeps_rays_logs_and_says_where(capsys):
    import ray

    def fail():
        with session.connect(num_cpus=1):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fail()
    assert not ray.is_initialized()
    told = capsys.readouterr().err
    folder = told.split("kept in ")[1].split(" ")[0]
    assert os.path.isdir(os.path.join(folder, "session_latest", "logs"))
    subprocess.run(["rm", "-rf", folder], check=True)


def test_a_nested_connection_uses_the_one_there_is():
    import ray

    with session.connect(num_cpus=1) as outer:
        with session.connect() as inner:
            assert inner == outer
        assert ray.is_initialized()
