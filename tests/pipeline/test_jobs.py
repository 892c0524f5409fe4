"""Jobs without a cluster: ids, addresses, what is refused, and logs across lost connections."""

import asyncio
import os
import socket
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

from imagen.errors import ConfigError
from pipeline import addresses, jobs, submitting
from pipeline import config as configs
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


def test_a_place_that_is_written_in_another_way_is_the_same_run():
    ways = ["/a/b", "/a/b/", "/a//b", "//a/b", "/a/./b", "file:///a/b/"]
    assert {jobs.place(way) for way in ways} == {"/a/b"}
    assert len({jobs.job_id("eval", way, 1) for way in ways}) == 1
    assert {jobs.place(f"{s}://b/run{end}") for s in ("gs", "gcs") for end in ("", "/", "//")} == {
        "gs://b/run"
    }
    assert jobs.place("gs://b//run") == "gs://b//run"  # another object, of which Ray's id tells
    assert jobs.place("runs/x") == "runs/x"


def test_jobs_of_a_place_are_given_the_same_settings_however_it_is_written(tmp_path):
    ways = (f"{tmp_path}", f"{tmp_path}/", f"file://{tmp_path}//")
    shipped = [submitting.ship(configs.load(DIGITS, [f"out={way}"])) for way in ways]
    assert {(s.out, s.digest, s.config.path) for s in shipped} == {
        (str(tmp_path), shipped[0].digest, shipped[0].config.path)
    }
    assert submitting.ship(configs.load(DIGITS, ["out=gs://b/run/"])).out == "gs://b/run"


def test_jobs_are_found_however_their_run_is_written():
    class Client:
        def list_jobs(self):
            key, told = jobs.job_id("eval", "gs://b/run", 1), {"out": "gs://b/run", "stage": "eval"}
            facts = {"start_time": 1, "end_time": None, "message": "", "driver_exit_code": None}
            facts |= {"entrypoint": "python -m eval x", "error_type": None, "metadata": told}
            return [SimpleNamespace(submission_id=key, status=JobStatus.RUNNING, **facts)]

    cluster = object.__new__(jobs.Cluster)
    cluster.address, cluster._client = "http://head:8265", Client()
    for way in ("gs://b/run", "gs://b/run/"):
        (found,) = cluster.of(way)["eval"]
        assert found.command == "python -m eval x"
    assert cluster.of("gs://b/other") == {}


@pytest.mark.parametrize("address", ["http://head:99999", "http://127.0.0.1:abc", "http://[::1"])
def test_an_address_that_is_no_url_is_refused(address):
    with pytest.raises(ConfigError, match="is no URL"):
        jobs.Cluster(address)


def test_a_variable_that_is_no_url_is_refused_and_not_passed_over(monkeypatch):
    monkeypatch.setenv(addresses.URL, "head:8265")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="RAY_API_SERVER_ADDRESS is `head:8265`"):
        addresses.url_of(None)
    assert addresses.url_of("http://head:8265") == "http://head:8265"


def test_status_refuses_an_address_that_is_no_url(tmp_path):
    words = ["status", DIGITS, f"out={tmp_path}", "--address", "head:8265"]
    args = parser().parse_args(words)
    with pytest.raises(ConfigError, match="--address `head:8265` is no URL"):
        args.command(args)


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        ("http://head:8265/", {}, "http://head:8265"),
        ("https://head", {addresses.URL: "http://other"}, "https://head"),
        ("10.0.0.1:6379", {addresses.URL: "http://other"}, None),
        (None, {addresses.URL: "http://head:8265"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "http://head:8265"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, None),
        (None, {}, None),
    ],
)
def test_jobs_go_to_the_url_that_is_given_or_that_of_the_environment(
    monkeypatch, given, environment, url
):
    for name in (addresses.URL, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert addresses.url_of(given) == url


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


KINDS = {".py", ".css", ".js", ".yaml"}
PACKAGES = ("imagen", "runtime", "preencode", "train", "eval", "pipeline")


def packed(folder, target):
    """Return what Ray ships of a folder."""
    create_package(str(folder), target, include_gitignore=True)
    return set(zipfile.ZipFile(target).namelist())


def test_all_of_the_six_packages_is_shipped_and_nothing_else_of_this_checkout(tmp_path):
    root = Path(submitting.__file__).parents[1]
    files = [path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file()]
    code = {str(p.relative_to(root)) for p in files if "__pycache__" not in p.parts}
    assert packed(root, tmp_path / "code.zip") == code
    assert {Path(name).suffix for name in code} == KINDS


def test_keys_data_and_results_that_lie_in_a_checkout_are_not_shipped(tmp_path):
    root, checkout = Path(submitting.__file__).parents[1], tmp_path / "checkout"
    for name in (".gitignore", ".rayignore"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_bytes((root / name).read_bytes())
    secret = (".env", "key.json", "id_rsa", "own.py", "data/00000.tar", "photos/a.jpg", "wandb/x")
    secret += ("models/t5/w.safetensors", "models/imagen/a.py", "train/.env", "train/key.json")
    secret += ("venv/bin/x.py", ".git/config", "eval/w.safetensors", "pipeline/__pycache__/a.pyc")
    shipped = ("pipeline/a.py", "imagen/data/a.py", "eval/page.css", "pipeline/configs/a.yaml")
    for name in (*secret, *shipped):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    assert packed(checkout, tmp_path / "code.zip") - {"eval/", "train/"} == set(shipped)


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


class Silent:
    """A cluster whose first log connections are lost without anybody noticing."""

    address = "http://head:8265"

    def __init__(self, silent, status="SUCCEEDED"):
        self.silent, self.status, self.connections = silent, status, 0

    async def tail(self, _):
        self.connections += 1
        yield "one\ntw"
        if self.connections <= self.silent:
            await asyncio.Event().wait()
        yield "o\nthree"

    def log(self, _):
        return "one\ntwo\nthree"

    def info(self, _):
        return job(self.status)


def test_a_log_without_a_word_for_long_is_asked_for_anew(monkeypatch):
    for name in ("AGAIN_S", "SILENCE_S"):
        monkeypatch.setattr(f"pipeline.following.{name}", 0.01)
    written, cluster = [], Silent(2)
    Tail(cluster, "key", written.append).run()
    assert written == ["one", "two", "three"]
    assert cluster.connections == 3


@pytest.mark.parametrize("silence_s", [1000.0, 0.01])
def test_a_job_that_ends_while_its_log_is_silent_or_away_is_told_to_its_end(monkeypatch, silence_s):
    for name in ("LOOK_S", "REST_S"):
        monkeypatch.setattr(f"pipeline.following.{name}", 0.05)
    monkeypatch.setattr("pipeline.following.SILENCE_S", silence_s)
    written = []
    follower = Follower(Silent(10**9), written.append, named=False)
    follower.add("eval", job())
    while not (ended := follower.ended()):
        pass
    assert ended["eval"].status == "SUCCEEDED"
    assert written == ["one", "two", "three"]


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
    line = ["schedule", "eval", DIGITS, "out=/data/50%", "eval.judge=none", *words, "--crontab"]
    schedule.run(parser().parse_args(line))
    return capsys.readouterr().out


def test_the_line_for_cron_submits_the_evaluation_of_all_and_tells_no_secret(monkeypatch, capsys):
    told = crontab(monkeypatch, capsys, "--every", "30m", "--address", "http://head:8265")
    assert told.startswith("*/30 * * * * cd ")
    assert f"-m pipeline submit eval {DIGITS} 'out=/data/50\\%'" in told or "50\\%" in told
    assert "--options=--all" in told
    assert "RAY_AUTH_MODE=token" in told
    assert "secret" not in told


def test_the_line_for_cron_has_all_that_it_needs_of_here(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(addresses.URL, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265/")
    monkeypatch.setenv("PYTHONPATH", "/my code")
    folder = tmp_path / "50% off"
    (folder / "pipeline" / "configs").mkdir(parents=True)
    (folder / DIGITS).write_bytes(Path(DIGITS).read_bytes())
    monkeypatch.chdir(folder)
    told = crontab(monkeypatch, capsys, "--every", "1h")
    assert "--address http://head:8265 " in told
    assert "PYTHONPATH='/my code'" in told
    assert f"cd '{tmp_path}/50\\% off' && " in told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("eval", DIGITS, "out=/x"), "no cluster is named"),
        (("eval", DIGITS, "out=/x", "--address", "http://h:x"), "is no URL"),
        (("evil", DIGITS, "out=/x", "--address", "http://h:1"), "did you mean eval"),
        (("eval", "none.yaml", "--address", "http://h:1"), "does not exist"),
        (("eval", DIGITS, "out=x", "--address", "http://h:1"), "lies in a job's own folder"),
        (("line", DIGITS, "out=/x", "--address", "http://h:1", "--options=--until x"), "no stage"),
        (("line", DIGITS, "out=/x", "--address", "http://h:1", "--options=--to x"), "takes no"),
        (("line", DIGITS, "out=/x", "--address", "http://h:1", "--options=--until"), "--options"),
    ],
)
def test_a_line_for_cron_that_could_not_work_is_not_printed(words, reason, monkeypatch, capsys):
    for name in (addresses.URL, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    args = parser().parse_args(["schedule", *words, "--every", "1h", "--crontab"])
    with pytest.raises(ConfigError, match=reason):
        schedule.run(args)
    assert capsys.readouterr().out == ""
