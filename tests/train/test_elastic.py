import errno
import math
import os
import threading
from pathlib import Path

import pytest
import ray

from imagen import checkpoint
from imagen.errors import ConfigError
from runtime import session
from train import elastic, ray_internals
from train.attempts import LIMIT_BUGS, WorkerFailed
from train.job import Job
from train.machines import STOP, STOPPED, WAITING


@pytest.fixture(autouse=True)
def nothing_expected(monkeypatch):
    monkeypatch.delenv(session.EXPECTS, raising=False)


def test_a_worker_takes_one_cpu_and_its_loaders(helpers):
    job = Job(helpers.make_config("x", loader_workers=2), "base", "one")
    assert elastic.resources(job, {"CPU": 8.0}) == {"CPU": 3.0}


def test_a_worker_takes_a_gpu_where_there_are_some(helpers):
    job = Job(helpers.make_config("x"), "base", "one")
    assert elastic.resources(job, {"CPU": 8.0, "GPU": 2.0}) == {"CPU": 1.0, "GPU": 1.0}


def test_members_on_one_cluster_are_fenced_from_each_other(helpers):
    cluster = {"CPU": 2.0, "imagen_base": 1.0, "imagen_sr1": 1.0}
    for member in ("base", "sr1"):
        job = Job(helpers.make_config("x", workers=(1, 2)), member, "one")
        wants = elastic.resources(job, cluster)
        assert wants == {"CPU": 1.0, f"imagen_{member}": 1.0}
        assert elastic.room(wants, cluster) == 1


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"CPU": 0.0},
        {"CPU": 8.0},
        {"CPU": 7.0, "GPU": 1.0, "imagen_sr1": 1.0, "imagen_eval": 1.0},
    ],
    ids=["head alone", "head without cores", "machines for the data", "pools of others"],
)
def test_machines_that_are_expected_are_asked_for_and_no_others_used(
    helpers, monkeypatch, capsys: pytest.CaptureFixture, cluster
):
    job = Job(helpers.make_config("x", workers=(1, 8)), "base", "one")
    monkeypatch.setenv(session.EXPECTS, "GPU,imagen_base,imagen_sr1,imagen_eval")
    wants = {"CPU": 1.0, "GPU": 1.0, "imagen_base": 1.0}
    assert elastic.resources(job, cluster) == wants
    assert elastic._plan(job, cluster) == wants
    told = capsys.readouterr().err
    assert "train base on GPUs: waiting for machines: 1 to 8 workers" in told
    assert "there is room for 0" in told  # what is expected is not there


def test_what_is_expected_of_others_is_not_asked_for(helpers, monkeypatch):
    job = Job(helpers.make_config("x"), "base", "one")
    monkeypatch.setenv(session.EXPECTS, "imagen_sr1,imagen_eval")
    assert elastic.resources(job, {"CPU": 8.0}) == {"CPU": 1.0}
    monkeypatch.setenv(session.EXPECTS, "imagen_baes")
    with pytest.raises(ConfigError, match="`imagen_baes` is no resource"):
        elastic.resources(job, {"CPU": 8.0})


@pytest.mark.parametrize(("cpus", "workers"), [(0.0, 0), (2.0, 2), (7.9, 7)])
def test_room_is_counted_in_whole_workers(cpus: float, workers: int):
    assert elastic.room({"CPU": 1.0}, {"CPU": cpus}) == workers


def test_a_launch_given_up_below_a_torn_checkpoint_shows_its_bug(helpers, tmp_path: Path):
    job = Job(helpers.make_config(str(tmp_path)), "base", "one")
    checkpoint.save(job.checkpoints, 160, {}, {})  # the workers found it torn, and took 120
    for _ in range(LIMIT_BUGS):
        job.attempts.fail(job.attempts.start(120), 0, 120, TypeError("the bug"))
    with pytest.raises(WorkerFailed, match="TypeError: the bug"):
        elastic.fit(job)


def test_a_dying_worker_in_rays_folder_is_no_obstacle(helpers, tmp_path: Path, monkeypatch):
    job = Job(helpers.make_config(str(tmp_path)), "base", "one")
    folder = Path(elastic._ray_folder(job))

    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, "another file has come")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        assert elastic._ray_folder(job) == str(folder)
    assert folder.is_dir()


def test_machines_are_looked_at_before_each_call_of_ray(
    helpers, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture
):
    job = Job(helpers.make_config(str(tmp_path), workers=(1, 3)), "base", "one")
    clusters = iter([{"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}])
    on_gpu: list[bool] = []

    class Lost(ray_internals.ElasticTrainer):
        """Gets a checkpoint further at its first call, then its machines are gone."""

        def fit(self):
            on_gpu.append(bool(self.scaling_config.use_gpu))
            checkpoint.save(job.checkpoints, 40, {}, {})
            raise RuntimeError("machines gone")

    def nobody(*_: object, **__: object) -> None:
        raise ValueError("no such actor")

    monkeypatch.setattr(ray, "cluster_resources", lambda: next(clusters))
    monkeypatch.setattr(ray, "get_actor", nobody)
    monkeypatch.setattr(ray_internals, "ElasticTrainer", Lost)
    with pytest.raises(RuntimeError, match="machines gone"):
        elastic.fit(job)
    assert on_gpu == [False, True]
    told = capsys.readouterr().err
    assert "train base on CPUs: 1 to 3 workers of {'CPU': 1.0} are wanted" in told
    assert "train base on GPUs:" in told


def test_a_wait_for_machines_is_told(helpers, capsys: pytest.CaptureFixture):
    job = Job(helpers.make_config("x", workers=(3, 3)), "base", "one")
    elastic._plan(job, {"CPU": 2.0})
    assert "on CPUs: waiting for machines: 3 to 3 workers" in capsys.readouterr().err


def test_what_a_run_waits_for_is_told_when_it_changes_and_now_and_then(
    helpers, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    job = Job(helpers.make_config("x", workers=(2, 3)), "base", "one")
    waiting = elastic.Waiting(job, str(tmp_path))

    def told(text: str | None = None) -> str:
        if text is not None:
            (tmp_path / WAITING).write_text(text)
        waiting.tell()
        return capsys.readouterr().err

    assert told() == ""
    said = "train base: waiting for 2 workers: there is room for 1\n"
    assert told("there is room for 1") == said
    assert told() == ""
    monkeypatch.setattr(elastic, "TELL_S", 0.0)
    assert told() == said
    assert told("") == ""  # it has begun


@pytest.mark.parametrize("end", ["saved", "ray has ended"])
def test_a_last_checkpoint_is_waited_for_until_it_is_there_or_nobody_can_save_it(
    helpers, tmp_path: Path, monkeypatch, end: str
):
    job = Job(helpers.make_config("x"), "base", "one")
    monkeypatch.setattr(elastic, "LAST_S", math.inf)
    over = threading.Event()
    call = threading.Thread(target=over.wait, daemon=True)
    call.start()
    words = (job, str(tmp_path), call)
    saving = threading.Thread(target=elastic._save_last, args=words, daemon=True)
    saving.start()
    saving.join(1.0)
    assert saving.is_alive()
    assert (tmp_path / STOP).exists()
    if end == "saved":
        (tmp_path / STOPPED).touch()
    else:
        over.set()
    saving.join(60.0)
    assert not saving.is_alive()
    over.set()
