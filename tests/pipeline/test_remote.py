"""The line as jobs, on a cluster of this test's: whose jobs run, and what they leave."""

import dataclasses

import pytest

from imagen.errors import ConfigError, ImagenError, StorageError
from pipeline import config as configs
from pipeline import jobs, remote, submitting
from pipeline.__main__ import parser
from pipeline.commands import arguments, schedule, submit
from pipeline.jobs import JobInfo
from runtime.state import StageState

DIGITS = "pipeline/configs/digits.yaml"


class Cluster:
    """Takes jobs; each ends when it is looked at, as `ends` says by its place among them."""

    address = "http://head:8265"

    def __init__(self, ends=()):
        self.jobs, self.ends, self.submitted, self.tails = {}, list(ends), [], set()

    def put(self, stage, out, config, command, attempt=1):
        facts = {"status": "RUNNING", "started_s": 1.0, "ended_s": None, "message": ""}
        key = jobs.job_id(stage, out, attempt)
        job = JobInfo(id=key, config=config, command=command, exit_status=None, **facts)
        self.jobs.setdefault(stage, []).append(job)

    def of(self, out):
        assert out == jobs.place(out)
        return {stage: list(found) for stage, found in self.jobs.items()}

    def submit(self, key, command, _, metadata):
        self.submitted.append(command)
        attempt = int(key.rpartition("-")[2])
        self.put(metadata["stage"], metadata["out"], metadata["config"], command, attempt)

    def info(self, key):
        """Return a job; one that is being followed has ended."""
        for found in self.jobs.values():
            if found[-1].id == key and key in self.tails and found[-1].active and self.ends:
                found[-1] = dataclasses.replace(found[-1], ended_s=2.0, **self.ends.pop(0))
        return next((job for found in self.jobs.values() for job in found if job.id == key), None)

    async def tail(self, key):
        self.tails.add(key)
        yield "x\n"

    def log(self, _):
        return "x\n"


ENDED = {"status": "SUCCEEDED", "exit_status": 0}
FAILED = {"status": "FAILED", "exit_status": 1}
STOPPED = {"status": "STOPPED"}
LOST = {"status": "FAILED", "lost": True}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("pipeline.following.LOOK_S", "pipeline.following.AGAIN_S"):
        monkeypatch.setattr(name, 0.0)
    monkeypatch.setattr("runtime.progress.POLL_S", 0.0)


@pytest.fixture
def shipment(tmp_path):
    return submitting.ship(configs.load(DIGITS, [f"out={tmp_path}", "eval.judge=none"]))


def evaluation(shipment, cluster):
    """Return the stage eval, which is done when the last job has ended as it should."""
    (stage,) = [stage for stage in shipment.stages() if stage.name == "eval"]

    def state():
        status = "partial" if cluster.ends else "done"
        return StageState(stage="eval", status=status, detail="as told")

    return dataclasses.replace(stage, after=(), state=state)


def command(stage, *more):
    return " ".join(("python", *stage.arguments, *more))


@pytest.mark.parametrize(
    ("config", "more", "end"),
    [
        ("same", ["--all"], ENDED),  # it began before the last training ended
        ("same", ["--all"], FAILED),  # one old checkpoint could not be read
        ("other", [], ENDED),
        ("other", [], STOPPED),
        ("same", [], ENDED),  # by hand, too early
        ("same", [], FAILED),
    ],
)
def test_what_a_job_of_others_has_left_is_done_by_one_of_this_run(
    shipment, capsys, config, more, end
):
    cluster = Cluster([end, ENDED])
    stage = evaluation(shipment, cluster)
    digest = shipment.digest if config == "same" else "other"
    cluster.put("eval", shipment.out, digest, command(stage, *more))
    assert remote.run(cluster, shipment, [stage]).failed == {}
    assert cluster.submitted == [command(stage)]
    assert [job.attempt for job in cluster.jobs["eval"]] == [1, 2]
    told = capsys.readouterr().err
    assert "which this run did not submit" in told
    assert ("waiting for its end" in told) == (config == "other" or bool(more))


def test_a_job_that_a_person_stopped_is_not_submitted_again(shipment):
    cluster = Cluster([STOPPED, ENDED])
    stage = evaluation(shipment, cluster)
    cluster.put("eval", shipment.out, shipment.digest, command(stage))
    assert remote.run(cluster, shipment, [stage]).failed == {"eval": 1}
    assert cluster.submitted == []


def test_jobs_of_others_are_not_waited_for_for_ever(shipment):
    class Crowded(Cluster):
        """Another is always there first."""

        def submit(self, key, command, _, metadata):
            attempt = int(key.rpartition("-")[2])
            self.put("eval", metadata["out"], metadata["config"], command + " --all", attempt)
            raise jobs.TakenError("it is there")

    cluster = Crowded([FAILED] * 20)
    outcome = remote.run(cluster, shipment, [evaluation(shipment, cluster)])
    assert outcome.failed == {"eval": 1}
    assert len(cluster.jobs["eval"]) == remote.OTHERS_TRIES + 1


def test_work_that_only_the_cluster_sees_is_told_of_jobs_of_this_run(shipment):
    cluster = Cluster([ENDED, ENDED])
    with pytest.raises(ConfigError, match="seen from here it is partial"):
        remote.run(cluster, shipment, [evaluation(shipment, cluster)])


@pytest.mark.parametrize(("lasted_s", "failed"), [(1000.0, {"eval": 1}), (0.0, {})])
def test_a_job_that_lasted_ends_a_row_of_lost_ones(shipment, monkeypatch, lasted_s, failed):
    monkeypatch.setattr(remote, "LASTED_S", lasted_s)
    cluster = Cluster([LOST] * (remote.LOST_TRIES + 1) + [ENDED])
    outcome = remote.run(cluster, shipment, [evaluation(shipment, cluster)])
    assert outcome.failed == failed
    assert len(cluster.submitted) == remote.LOST_TRIES + 1 + (not failed)


@pytest.mark.parametrize("how", ["run", "submit line"])
def test_a_snapshot_that_is_not_there_is_told_before_the_first_job(tmp_path, how):
    more = [f"out={tmp_path}", "eval.judge=none", "train.base.init_from=/none"]
    cluster, shipment = Cluster(), submitting.ship(configs.load(DIGITS, more))
    ways = {
        "run": lambda: remote.run(cluster, shipment, shipment.stages()),
        "submit line": lambda: submit.submitted("line", [], cluster, shipment),
    }
    with pytest.raises(ImagenError, match="/none"):
        ways[how]()
    assert cluster.submitted == []
    submit.submitted("line", ["--until", "preencode"], cluster, shipment)
    assert len(cluster.submitted) == 1


def test_a_stage_that_runs_by_another_command_is_not_taken_for_the_same(shipment):
    cluster = Cluster()
    first = submit.submitted("line", ["--until", "preencode"], cluster, shipment)
    assert submit.submitted("line", ["--until", "preencode"], cluster, shipment) == first
    with pytest.raises(submitting.RunsOtherwise, match=r"by another command .*--until preencode"):
        submit.submitted("line", [], cluster, shipment)
    assert len(cluster.submitted) == 1


def ticking(monkeypatch, cluster, out, *more, stage="eval"):
    monkeypatch.setattr(arguments, "cluster", lambda _: cluster)
    words = ["schedule", stage, DIGITS, f"out={out}", "eval.judge=none", *more, "--every", "30m"]
    args = parser().parse_args(words)
    args.options = schedule.USUAL.get(stage, "")
    schedule._tick(args)


def test_a_tick_while_the_stage_runs_with_other_settings_is_left_out(monkeypatch, tmp_path, capsys):
    cluster = Cluster()
    cluster.put("eval", str(tmp_path), "older", "python -m eval x")
    ticking(monkeypatch, cluster, tmp_path)
    assert cluster.submitted == []
    assert "not submitted, next time again: eval is being run by job" in capsys.readouterr().err


def test_a_tick_before_what_the_stage_needs_is_there_is_left_out(monkeypatch, tmp_path, capsys):
    ticking(monkeypatch, Cluster(), tmp_path, stage="train-base")
    assert "next time again: train base needs" in capsys.readouterr().err


def test_a_tick_while_the_bucket_does_not_answer_is_left_out(monkeypatch, tmp_path, capsys):
    (tmp_path / "submitted").write_text("a file where a folder has to be")
    ticking(monkeypatch, Cluster(), tmp_path)
    assert "not submitted, next time again: cannot write" in capsys.readouterr().err


def test_a_tick_while_the_config_cannot_be_read_is_left_out(monkeypatch, tmp_path, capsys):
    def away(*_):
        raise StorageError("503 after retries")

    monkeypatch.setattr(configs, "load", away)
    ticking(monkeypatch, Cluster(), tmp_path)
    assert "not submitted, next time again: 503" in capsys.readouterr().err


def test_a_mistake_in_the_config_ends_a_schedule(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="lrr"):
        ticking(monkeypatch, Cluster(), tmp_path, "train.base.lrr=1")
