"""Jobs without a cluster: ids, addresses, what is refused, and logs across lost connections."""

import argparse
import os
import socket

import pytest

from imagen.errors import ConfigError
from pipeline import config as configs
from pipeline import jobs, submitting
from pipeline.__main__ import parser
from pipeline.commands import schedule
from pipeline.following import Follower, Tail
from pipeline.jobs import JobInfo, Unreachable
from pipeline.stages import line

DIGITS = "pipeline/configs/digits.yaml"
SHAPES = "pipeline/configs/shapes.yaml"


def job(status="RUNNING", attempt=1, **more):
    facts = {"started_s": 1.0, "ended_s": None, "message": "", "config": "c", "exit_status": None}
    return JobInfo(id=jobs.job_id("eval", "/out", attempt), status=status, **(facts | more))


def test_the_id_of_a_job_tells_stage_run_and_attempt():
    first, other = jobs.job_id("train base", "gs://b/run", 1), jobs.job_id("eval", "/x", 12)
    assert first.startswith("imagen-train-base-")
    assert first.rpartition("-")[0] != jobs.job_id("train base", "gs://b/two", 1).rpartition("-")[0]
    assert other == f"imagen-eval-{jobs.digest_of('/x')}-12"
    assert job(attempt=12).attempt == 12


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        ("http://head:8265/", {}, "http://head:8265"),
        ("https://head", {jobs.URL: "http://other"}, "https://head"),
        ("10.0.0.1:6379", {jobs.URL: "http://other"}, None),
        (None, {jobs.URL: "http://head:8265"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "http://head:8265"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, None),
        (None, {}, None),
    ],
)
def test_jobs_go_to_the_url_that_is_given_or_that_of_the_environment(
    monkeypatch, given, environment, url
):
    for name in (jobs.URL, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert jobs.url_of(given) == url


def test_where_nothing_listens_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        Unreachable, match=f"no Ray cluster takes jobs at `http://127.0.0.1:{port}`"
    ):
        jobs.Cluster(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("path", [DIGITS, SHAPES])
def test_the_config_that_is_stored_is_the_one_that_was_given(path, tmp_path):
    given = configs.load(path, [f"out={tmp_path}", "seed=3"])
    shipment = submitting.ship(given)
    submitting.store(shipment)
    stored = configs.load(shipment.config.path)
    assert (stored.preencode, stored.train, stored.eval) == (
        *(given.preencode, given.train, given.eval),
    )
    assert submitting.ship(stored).digest == shipment.digest
    assert [s.name for s in shipment.stages()] == [s.name for s in line(given)]
    assert all(shipment.config.path in stage.arguments for stage in shipment.stages())


def test_a_setting_more_is_another_digest(tmp_path):
    digests = {
        submitting.ship(configs.load(DIGITS, [f"out={tmp_path}", *more])).digest
        for more in ([], ["seed=0"], ["seed=1"], ["train.base.lr=1e-4"])
    }
    assert len(digests) == 3  # seed 0 is the default


@pytest.mark.parametrize(
    "override",
    [
        *("out=run", "data.tars=tars", "train.base.init_from=old/base", "publish.to=pub"),
        "source={name: folder, path: photos}",
        *("eval.prompts=prompts.txt", "text.encoder=models/t5"),
    ],
)
def test_a_path_that_only_this_folder_knows_is_refused(override, tmp_path, monkeypatch):
    config = configs.load(os.path.abspath(DIGITS), ["out=gs://b/run", "eval.judge=none", override])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("seven")
    (tmp_path / "models" / "t5").mkdir(parents=True)
    with pytest.raises(ConfigError, match="on a cluster lies in a job's own folder"):
        submitting.ship(config)


def test_names_and_absolute_paths_and_urls_are_taken(tmp_path):
    more = ["data.tars=gs://b/tars", "text.encoder=google/flan-t5-xl", "eval.prompts=/p.txt"]
    more += ["eval.judge=none"]
    widths = [f"members.{m}.network.text_dim=2048" for m in ("base", "sr1")]
    config = configs.load(DIGITS, [f"out={tmp_path}", *more, *widths])
    assert submitting.ship(config).out == str(tmp_path)


def test_code_comes_with_the_job_or_from_the_image(tmp_path):
    config = configs.load(DIGITS, [f"out={tmp_path}"])
    shipped = submitting.ship(config).runtime_env()
    image = submitting.ship(config, "image").runtime_env()
    assert (tmp_path.root, "working_dir" in image) == ("/", False)
    assert shipped["env_vars"] == image["env_vars"]
    assert shipped["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert "pip" not in shipped
    with open(f"{shipped['working_dir']}/pipeline/configs/digits.yaml") as file:
        assert file.readline().startswith("# ")


class Dropping:
    """A cluster whose connection is lost in the middle of a log, and that is away for a while."""

    address = "http://head:8265"

    def __init__(self, parts, states=()):
        self.parts, self.states = parts, list(states)

    async def tail(self, _):
        part = self.parts.pop(0)
        for text in part:
            yield text
        if self.parts:
            raise Unreachable("gone")

    def info(self, _):
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state


def test_no_line_of_a_log_is_lost_or_told_twice_when_the_connection_is_lost(monkeypatch):
    monkeypatch.setattr("pipeline.following.AGAIN_S", 0.0)
    written = []
    log = [["one\ntw"], ["one\ntwo\n", "thr"], ["one\n", "two\nthree\nfour"]]
    Tail(Dropping(log), "key", written.append).run()
    assert written == ["one", "two", "three", "four"]


def test_who_follows_is_told_that_the_connection_is_lost_and_is_there_again(monkeypatch):
    for name in ("LOOK_S", "AGAIN_S"):
        monkeypatch.setattr(f"pipeline.following.{name}", 0.0)
    states = [job(), Unreachable("refused"), Unreachable("refused"), job("SUCCEEDED")]
    written = []
    follower = Follower(Dropping([[]], states), written.append)
    follower.add("eval", job())
    ended = [follower.ended() for _ in range(4)]
    assert ended[:3] == [{}, {}, {}]
    assert ended[3]["eval"].status == "SUCCEEDED"
    assert [line.partition(":")[0] for line in written] == [
        *("connection lost", "connected again to http"),
    ]


def test_a_job_that_the_cluster_has_never_heard_of_was_lost(monkeypatch):
    monkeypatch.setattr("pipeline.following.LOOK_S", 0.0)
    follower = Follower(Dropping([[]], [None]), [].append)
    follower.add("eval", job())
    assert follower.ended() == {"eval": None}
    assert follower.running == {}


def crontab(monkeypatch, capsys, *words):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    args = parser().parse_args(["schedule", "eval", DIGITS, "out=/data/50%", *words, "--crontab"])
    assert isinstance(args, argparse.Namespace)
    schedule.run(args)
    return capsys.readouterr().out


def test_the_line_for_cron_submits_the_evaluation_of_all_and_tells_no_secret(monkeypatch, capsys):
    told = crontab(monkeypatch, capsys, "--every", "30m", "--address", "http://head:8265")
    assert told.startswith("*/30 * * * * cd ")
    assert f"-m pipeline submit eval {DIGITS} 'out=/data/50\\%'" in told or "50\\%" in told
    assert "--options=--all" in told
    assert "RAY_AUTH_MODE=token" in told
    assert "secret" not in told
