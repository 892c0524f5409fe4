import errno
import itertools
import os
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from imagen import storage
from imagen.errors import ConfigError, ImagenError, ShardError, StorageError
from imagen.retrying import Patience, patiently
from imagen.store import explained
from train import attempts
from train.attempts import LIMIT_BUGS, LIMIT_DEATHS, LIMIT_LOST, Launch, WorkerFailed, kind_of
from train.job import Job
from train.loop import World
from train.worker import run_rank


def failed(errno_: int) -> StorageError:
    """As a disk says it."""
    with pytest.raises(StorageError) as err, explained("write", "/out/x"):
        raise OSError(errno_, os.strerror(errno_))
    return err.value


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(str(tmp_path), "one")


def test_a_new_launch_is_worth_a_try(launch: Launch):
    assert launch.given_up(0) is None
    assert [launch.start(0), launch.start(0)] == [0, 1]


def test_an_error_of_the_users_is_not_retried(launch: Launch):
    launch.fail(launch.start(0), 1, 0, ConfigError("no such thing", "use another"))
    why = launch.given_up(0)
    assert isinstance(why, ImagenError)
    assert (why.message, why.hint) == ("no such thing", "use another")
    assert Launch(launch.run_dir, "two").given_up(0) is None


def test_a_bug_is_tried_again_a_few_times(launch: Launch):
    for attempt in range(LIMIT_BUGS):
        assert launch.given_up(40) is None
        launch.fail(launch.start(40), 0, 40, TypeError(f"bug {attempt}"))
    why = launch.given_up(40)
    assert isinstance(why, WorkerFailed)
    assert "TypeError: bug 2" in str(why)


def test_silent_deaths_are_tried_more_often(launch: Launch):
    for _ in range(LIMIT_DEATHS):
        assert launch.given_up(40) is None
        launch.fail(launch.start(40), 1, 40, RuntimeError("[gloo] Connection reset by peer"))
    why = launch.given_up(40)
    assert why is not None
    assert str(why).startswith(f"workers died {LIMIT_DEATHS} times at 40 images before any")


def test_a_start_that_told_progress_is_no_death(launch: Launch):
    for _ in range(2 * LIMIT_DEATHS):  # machines come and go between two checkpoints
        launch.alive(launch.start(40))
    assert launch.count_alive() == 2 * LIMIT_DEATHS
    for _ in range(LIMIT_DEATHS - 1):
        launch.start(40)
    assert launch.given_up(40) is None
    launch.start(40)
    assert launch.given_up(40) is not None


def test_progress_that_is_lost_each_time_ends_in_the_end(launch: Launch):
    for images_seen in (0, 40):
        for _ in range(LIMIT_LOST):
            assert launch.given_up(images_seen) is None
            launch.alive(launch.start(images_seen))
    assert launch.given_up(80) is None
    why = launch.given_up(40)
    assert isinstance(why, ImagenError)
    assert f"started {LIMIT_LOST} times at 40 images, trained, and were lost" in why.message
    assert "lower `checkpoint_every`" in str(why.hint)


def test_a_disk_that_stays_full_ends_as_an_error_for_people(launch: Launch):
    for _ in range(LIMIT_BUGS):
        assert launch.given_up(40) is None
        launch.fail(launch.start(40), 0, 40, failed(errno.ENOSPC))
    why = launch.given_up(40)
    assert isinstance(why, ImagenError)
    assert why.message == "cannot write `/out/x`: No space left on device"


def test_what_a_store_forbids_is_not_tried_again_and_keeps_its_hint(launch: Launch):
    def refused() -> None:
        raise failed(errno.EACCES)

    with pytest.raises(StorageError) as err:
        patiently(refused, "memory://x")
    launch.fail(launch.start(40), 0, 40, err.value)
    why = launch.given_up(40)
    assert isinstance(why, ImagenError)
    assert "permission denied" in why.message
    assert why.hint is not None


class FlakyStore(MemoryFileSystem):
    """A store in memory that refuses every other write and read."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012 - as MemoryFileSystem has them
    pseudo_dirs = [""]  # noqa: RUF012
    calls = itertools.count()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _maybe(self) -> None:
        if next(self.calls) % 2 == 0:
            raise ConnectionResetError("lost")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._maybe()
        super().pipe_file(path, value, mode=mode, **kwargs)


def test_a_store_that_is_away_for_a_moment_loses_no_record(monkeypatch):
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    hasty = Patience(deadline_s=60, first_pause_s=0.001)
    monkeypatch.setattr(attempts, "PATIENCE", hasty)
    launch = Launch("flaky://run", "one")
    assert launch.reserve("mine") == []
    launch.alive(launch.start(40))
    launch.fail(0, 0, 40, ConfigError("no such thing"))
    assert (launch.count_starts(), launch.count_alive()) == (1, 1)
    assert "no such thing" in str(launch.given_up(40))
    assert Launch("flaky://run", "two").reserve("yours") == ["mine"]


def test_many_ranks_that_tell_of_one_bug_count_once(launch: Launch):
    for start in range(LIMIT_BUGS):
        assert launch.given_up(40) is None
        number = launch.start(40)
        for rank in range(8):
            launch.fail(number, rank, 40, TypeError(f"bug {start}"))
    assert isinstance(launch.given_up(40), WorkerFailed)


def test_who_does_not_know_the_position_asks_about_that_of_the_last_start(launch: Launch):
    assert launch.given_up() is None
    for images_seen in (80, *[40] * LIMIT_BUGS):  # 80 was torn after all
        launch.fail(launch.start(images_seen), 0, images_seen, TypeError("bug"))
    assert launch.given_up(80) is None
    assert isinstance(launch.given_up(), WorkerFailed)


def test_progress_sets_the_counts_back(launch: Launch):
    for images_seen in range(50):
        launch.fail(launch.start(images_seen), 0, images_seen, TypeError("now and then"))
        assert launch.given_up(images_seen + 1) is None


@pytest.mark.parametrize(
    ("err", "kind"),
    [
        (ShardError("x"), "user"),
        (StorageError("the bucket is away for a moment"), "storage"),
        (failed(errno.EACCES), "user"),
        (failed(errno.ENOENT), "storage"),
        (failed(errno.ENOSPC), "storage"),
        (ZeroDivisionError("x"), "bug"),
        (RuntimeError("Connection closed by peer [10.0.0.1]:123"), "peer"),
        (torch.distributed.DistBackendError("NCCL error"), "peer"),
    ],
)
def test_errors_are_told_apart(err: Exception, kind: str):
    assert kind_of(err) == kind


def test_a_run_tells_that_it_is_alive_at_its_first_progress(helpers, project: str):
    config = helpers.make_config(project, images=16)
    job = Job(config, "base", "one")
    run_rank(job, World(0, 1, torch.device("cpu")))
    assert storage.listdir(job.attempts.folder) == ["00000.alive.json", "00000.start.json"]


class Patchy(World):
    """A rank whose peer does not get at the checkpoint."""

    def gather(self, value: object) -> list:
        return [value, StorageError("the disk is away")]


def test_a_checkpoint_that_not_all_ranks_can_get_at_is_tried_again(helpers, project: str):
    cpu = torch.device("cpu")
    run_rank(Job(helpers.make_config(project, images=40), "base", "first"), World(0, 1, cpu))
    job = Job(helpers.make_config(project), "base", "one")
    with pytest.raises(StorageError, match="the disk is away"):
        run_rank(job, Patchy(0, 1, cpu))
    assert job.attempts.given_up(40) is None


def test_a_rank_records_its_error_and_later_starts_return(helpers, project: str):
    config = helpers.make_config(project, global_batch=128, microbatch=128)
    job, alone = Job(config, "base", "one"), World(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match="global_batch 128"):
        run_rank(job, alone)
    run_rank(job, alone)
    why = Launch(job.run_dir, "one").given_up(0)
    assert why is not None
    assert "global_batch 128" in str(why)
