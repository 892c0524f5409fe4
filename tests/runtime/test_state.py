import os
import signal
import subprocess
import sys

import pytest

from imagen.errors import StorageError
from runtime.state import is_locked, lock

HOLD = """
import sys, time
from runtime.state import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_nobody_holds_is_free(tmp_path):
    assert is_locked(str(tmp_path)) is None
    with lock(str(tmp_path)):
        pass
    assert is_locked(str(tmp_path)) is None


def test_the_holder_is_known_by_its_process(tmp_path, holder):
    assert is_locked(str(tmp_path)) == holder.pid


def test_a_second_run_is_refused_with_the_process_of_the_first(tmp_path, holder):
    with (
        pytest.raises(StorageError, match=f"is in use by process {holder.pid}") as caught,
        lock(str(tmp_path)),
    ):
        pass
    assert f"kill {holder.pid}" in caught.value.hint
    assert is_locked(str(tmp_path)) == holder.pid


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert is_locked(str(tmp_path)) is None
    with lock(str(tmp_path)):
        assert is_locked(str(tmp_path)) == os.getpid()


def test_a_lock_is_let_go_when_its_block_fails(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), lock(str(tmp_path)):
        raise RuntimeError("inside")
    assert is_locked(str(tmp_path)) is None


def test_looking_at_a_lock_does_not_make_a_lock_fail(tmp_path):
    looking = "import sys\nfrom runtime.state import is_locked\nwhile True: is_locked(sys.argv[1])"
    with lock(str(tmp_path)):
        pass
    process = subprocess.Popen([sys.executable, "-c", looking, str(tmp_path)])
    try:
        for _ in range(200):
            with lock(str(tmp_path)):
                pass
    finally:
        process.kill()
        process.wait()


def test_a_remote_folder_has_no_lock():
    with lock("memory://somewhere"):
        assert is_locked("memory://somewhere") is None


LOOK = """
import sys, time
from runtime.state import is_locked
end = time.monotonic() + 1.5
print(sum(is_locked(sys.argv[1]) is not None for _ in iter(lambda: time.monotonic() < end, False)))
"""


def test_those_who_only_look_never_take_each_other_for_the_holder(tmp_path):
    with lock(str(tmp_path)):
        assert is_locked(str(tmp_path)) == os.getpid()
    lookers = [
        subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [int(looker.communicate()[0]) for looker in lookers] == [0, 0]
