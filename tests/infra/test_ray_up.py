"""`ray up`: Ray's own checks, and what they don't look at; the notice of a spot machine."""

import copy
import http.server
import re
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest
import yaml

from runtime import session
from train.machines import VALIDATION

NODE_CONFIG = {
    "machineType": str,
    "disks": list,
    "serviceAccounts": list,
    "guestAccelerators": list,
    "metadata": dict,
    "scheduling": dict,
}
"""Keys of compute.instances.insert that are used: Ray hands node_config on without a look."""
SCHEDULING = {
    "provisioningModel": {"SPOT", "STANDARD"},
    "instanceTerminationAction": {"DELETE", "STOP"},
    "onHostMaintenance": {"TERMINATE", "MIGRATE"},
    "automaticRestart": {True, False},
}


@pytest.fixture(scope="module")
def config(infra, render):
    return yaml.safe_load(render(infra / "ray-up" / "gcp.yaml").stdout)


def check(config):
    """Raise ValueError where Ray or Compute Engine would refuse the config."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for name, node in prepared["available_node_types"].items():
        for key, value in node["node_config"].items():
            if key not in NODE_CONFIG or not isinstance(value, NODE_CONFIG[key]):
                raise ValueError(f"{name}.node_config.{key}")
        for key, value in node["node_config"].get("scheduling", {}).items():
            if value not in SCHEDULING.get(key, ()):
                raise ValueError(f"{name}.scheduling.{key}: {value}")
        if node["node_config"].get("guestAccelerators") and (
            node["node_config"]["scheduling"].get("onHostMaintenance") != "TERMINATE"
        ):
            raise ValueError(f"{name}: machines with GPUs cannot move")
    return prepared


def test_ray_takes_the_file(config):
    prepared = check(config)
    assert set(prepared["available_node_types"]) == {"head", "spot", "on-demand"}
    assert prepared["docker"]["image"] == config["docker"]["image"]


def without(config, *path):
    *parents, key = path
    for parent in parents:
        config = config[parent]
    del config[key]


def replaced(config, value, *path):
    *parents, key = path
    for parent in parents:
        config = config[parent]
    config[key] = value


TYPES = "available_node_types"
WRONG = {
    "unknown top-level key": lambda c: replaced(c, 1, "max_worker"),
    "wrong type": lambda c: replaced(c, "many", "max_workers"),
    "no such head": lambda c: replaced(c, "heads", "head_node_type"),
    "no head": lambda c: without(c, TYPES, "head"),
    "unknown key of a type": lambda c: replaced(c, 1, TYPES, "spot", "minWorkers"),
    "resources that are no numbers": lambda c: replaced(c, "1", TYPES, "spot", "resources", "GPU"),
    "a typo in node_config": lambda c: replaced(c, "x", TYPES, "spot", "node_config", "machinTyp"),
    "a list for scheduling": lambda c: replaced(
        c, [{"preemptible": True}], TYPES, "spot", "node_config", "scheduling"
    ),
    "a typo in scheduling": lambda c: replaced(
        c, "SPOTS", TYPES, "spot", "node_config", "scheduling", "provisioningModel"
    ),
    "a GPU that would have to move": lambda c: without(
        c, TYPES, "spot", "node_config", "scheduling", "onHostMaintenance"
    ),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused(config, change):
    changed = copy.deepcopy(config)
    change(changed)
    with pytest.raises(Exception, match=r"."):
        check(changed)


def test_the_head_runs_no_work_and_is_no_spot_machine(config):
    head = config[TYPES]["head"]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "scheduling" not in head["node_config"]
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]


def test_spot_is_asked_first_for_the_same_machine(config):
    spot, fallback = config[TYPES]["spot"], config[TYPES]["on-demand"]
    assert spot["priority"] > fallback["priority"]
    assert spot["resources"] == fallback["resources"]
    assert spot["node_config"]["machineType"] == fallback["node_config"]["machineType"]
    assert spot["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert VALIDATION not in spot["resources"]


def test_a_machine_that_costs_and_one_for_when_there_is_no_spot(config):
    spot, fallback = config[TYPES]["spot"], config[TYPES]["on-demand"]
    assert (spot["min_workers"], fallback["min_workers"]) == (0, 1)


def test_the_head_says_what_its_machines_will_have(config, monkeypatch):
    (option,) = config["docker"]["head_run_options"]
    name, _, value = option.removeprefix("--env ").partition("=")
    assert name == session.EXPECTS
    monkeypatch.setenv(name, value)
    has = set().union(*(node["resources"] for node in config[TYPES].values()))
    assert set(session.expected()) == has - {"CPU"}


def test_a_machine_with_a_gpu_waits_for_its_driver_before_the_container(config, tmp_path):
    from ray.autoscaler._private.command_runner import _with_interactive

    login = config["initialization_commands"]
    assert "nvidia-smi" not in str(login)  # the head has none, and would wait for ever
    gpus = {n: t for n, t in config[TYPES].items() if "guestAccelerators" in t["node_config"]}
    assert set(gpus) == {"spot", "on-demand"}
    *first, wait = gpus["spot"]["initialization_commands"]  # Ray runs these, and not those of all
    assert first == login
    assert gpus["on-demand"]["initialization_commands"] == [*login, wait]
    tools = tmp_path / "bin"
    tools.mkdir()
    tried = f'echo tried >> {tmp_path}/log; [ "$(wc -l < {tmp_path}/log)" -ge 3 ]\n'
    for name, body in (("nvidia-smi", tried), ("sleep", f"echo slept >> {tmp_path}/naps\n")):
        (tools / name).write_text("#!/bin/sh\n" + body)
        (tools / name).chmod(0o755)
    (tmp_path / ".bashrc").write_text(f"export PATH={tools}:/usr/bin:/bin\n")
    words = " ".join(_with_interactive(wait))  # how Ray has a machine run it
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert subprocess.run(["bash", "-c", words], env=env, capture_output=True).returncode == 0
    assert (tmp_path / "log").read_text().count("tried") == 3
    assert (tmp_path / "naps").read_text().count("slept") == 2


def test_no_machine_uses_the_account_that_ray_makes(config, infra):
    setup = (infra / "gcp" / "setup.sh").read_text()
    for node in config[TYPES].values():
        (account,) = node["node_config"]["serviceAccounts"]
        assert f"account {account['email'].split('@')[0]} " in setup


def test_the_token_is_on_and_the_dashboard_is_not_open(config):
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_drain_ends_within_the_notice(config):
    drain = re.search(r"DRAIN_TIMEOUT_S=(\d+)", config["worker_start_ray_commands"][-1])
    assert drain is not None
    assert int(drain[1]) <= 25  # of 30 s, less what the look at the notice takes


class Metadata(http.server.BaseHTTPRequestHandler):
    """Google's metadata server: nobody is preempted at first, then this machine is."""

    answers: Iterator[bytes] = iter(())

    def do_GET(self):
        assert self.headers["Metadata-Flavor"] == "Google"
        assert self.path.startswith("/computeMetadata/v1/instance/preempted?wait_for_change=true")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(next(self.answers))

    def log_message(self, format, *args):  # noqa: A002
        pass


def test_the_notice_of_a_spot_machine_stops_ray_gently(infra):
    Metadata.answers = iter([b"FALSE", b"TRUE"])
    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with subprocess.Popen(["sleep", "600"]) as ray:
        env = {"METADATA": f"http://127.0.0.1:{server.server_port}", "PATH": "/usr/bin:/bin"}
        words = ["sh", str(infra / "ray-up" / "notice.sh"), str(ray.pid)]
        subprocess.run(words, env=env, timeout=60, check=True)
        assert ray.wait(timeout=60) == -signal.SIGTERM
    assert next(Metadata.answers, None) is None
    server.shutdown()
    server.server_close()
