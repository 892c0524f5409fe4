from pathlib import Path

import pytest
import torch

from imagen.errors import ConfigError, ImagenError, ShardError, StorageError
from train.attempts import LIMIT_BUGS, LIMIT_DEATHS, Launch, WorkerFailed, kind_of
from train.loop import World
from train.worker import Job, run_rank


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
    assert str(why).startswith(f"workers died {LIMIT_DEATHS} times in a row at 40 images")


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


def test_a_rank_records_its_error_and_later_starts_return(helpers, project: str):
    config = helpers.make_config(project, global_batch=128, microbatch=128)
    job, alone = Job(config, "base", "one"), World(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match="global_batch 128"):
        run_rank(job, alone)
    run_rank(job, alone)
    why = Launch(job.run_dir, "one").given_up(0)
    assert why is not None
    assert "global_batch 128" in str(why)
