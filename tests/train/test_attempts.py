from pathlib import Path

import pytest
import torch

from imagen import storage
from imagen.errors import ConfigError, ImagenError, ShardError, StorageError
from train.attempts import LIMIT_BUGS, LIMIT_DEATHS, Launch, WorkerFailed, kind_of
from train.job import Job
from train.loop import World
from train.worker import run_rank


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
    for _ in range(3 * LIMIT_DEATHS):  # machines come and go between two checkpoints
        launch.alive(launch.start(40))
    for _ in range(LIMIT_DEATHS - 1):
        launch.start(40)
    assert launch.given_up(40) is None
    launch.start(40)
    assert launch.given_up(40) is not None


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
        (StorageError("the bucket is away for a moment"), "bug"),
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


class Second(World):
    """Rank 1 of two, of which rank 0 took a checkpoint at 40 images."""

    def broadcast(self, value: object) -> tuple[int, int]:
        assert value is None, "rank 0 decides"
        return 40, 0


def test_a_checkpoint_that_only_rank_0_could_read_is_tried_again(helpers, project: str):
    job = Job(helpers.make_config(project), "base", "one")
    job.attempts.start(40)
    with pytest.raises(StorageError, match="another rank took a checkpoint that is gone"):
        run_rank(job, Second(1, 2, torch.device("cpu")))
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
