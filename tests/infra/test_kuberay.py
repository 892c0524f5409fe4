"""The files for KubeRay: by the schema of its release, by the rules of its operator, by ours."""

import copy
import json
import mmap
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from eval.sampling import POOL
from pipeline.submitting import STOP_WAIT_S
from runtime import session
from train.machines import VALIDATION

ROOT = Path(__file__).parents[2]
SCHEMA = Path(__file__).parent / "schema" / "kuberay-v1.7.0.json"
FILES = sorted((ROOT / "infra" / "kuberay").glob("*.yaml"))
RELEASE = "1.7"
NODE_SETTINGS = re.compile(r"\b(RAY_[A-Za-z_]+)\b")


@pytest.fixture(scope="module")
def documents(render):
    """All documents by (file, kind, name), filled in."""
    found = {}
    for path in FILES:
        out = render(path, MEMBER="base")
        assert out.returncode == 0, out.stderr
        for doc in yaml.safe_load_all(out.stdout):
            found[path.name, doc["kind"], doc["metadata"]["name"]] = doc
    return found


@pytest.fixture(scope="module")
def schemas():
    """A checker for each kind."""
    vendored = json.loads(SCHEMA.read_text())
    return {
        kind: jsonschema.Draft202012Validator({**schema, "$defs": vendored["$defs"]})
        for kind, schema in vendored["kinds"].items()
    }


@pytest.fixture(scope="module")
def errors(schemas):
    """Return what Kubernetes and KubeRay's operator would say about a document."""

    def check(doc):
        found = [f"{e.json_path}: {e.message}" for e in schemas[doc["kind"]].iter_errors(doc)]
        return found or list(rules(doc))

    return check


def job_of(doc):
    """Return the spec of a RayJob, also of one that a schedule makes."""
    if doc["kind"] == "RayCronJob":
        return doc["spec"]["jobTemplate"]
    return doc["spec"] if doc["kind"] == "RayJob" else None


def cluster_of(doc):
    """Return the RayClusterSpec of a document, None where there is none."""
    job = job_of(doc)
    return doc["spec"] if doc["kind"] == "RayCluster" else job and job.get("rayClusterSpec")


def rules(doc):
    """KubeRay 1.7's validation.go and the CEL rules of its CRDs: what we could get wrong."""
    limit = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}.get(doc["kind"], 63)
    if len(doc["metadata"]["name"]) > limit:
        yield f"the name is longer than {limit}"
    if doc["kind"] == "RayCronJob" and not re.fullmatch(r"\S+( \S+){4}", doc["spec"]["schedule"]):
        yield "the schedule has not five fields"
    job, cluster = job_of(doc), cluster_of(doc)
    if job is not None:
        yield from job_rules(job)
    if cluster is not None:
        yield from cluster_rules(cluster)


def job_rules(job):
    deletion = job.get("deletionStrategy")
    if (job.get("rayClusterSpec") is None) == (not job.get("clusterSelector")):
        yield "one of rayClusterSpec and clusterSelector must be set"
    if job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if deletion and job.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes and deletionStrategy exclude each other"
    for rule in (deletion or {}).get("deletionRules", []):
        if ("jobStatus" in rule["condition"]) == ("jobDeploymentStatus" in rule["condition"]):
            yield "a deletion rule has one of jobStatus and jobDeploymentStatus"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if job.get(name, 1) <= 0:
            yield f"{name} must be positive"
    if job.get("backoffLimit", 0) > 0 and job.get("clusterSelector"):
        yield "backoffLimit and clusterSelector exclude each other"
    if isinstance(yaml.safe_load(job.get("runtimeEnvYAML", "{}")), str):
        yield "runtimeEnvYAML is no mapping"


def cluster_rules(cluster):
    v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    scales = bool(cluster.get("enableInTreeAutoscaling"))
    version = tuple(map(int, cluster.get("rayVersion", "0").split(".")))
    head = cluster["headGroupSpec"]
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        yield "authOptions need rayVersion 2.52"
    names = {env["name"] for env in head["template"]["spec"]["containers"][0].get("env", [])}
    if v2 and "RAY_enable_autoscaler_v2" in names:
        yield "the version of the autoscaler is said twice"
    if names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}:
        yield "Redis belongs into gcsFaultToleranceOptions"
    if "networkPolicy" in cluster or "tlsOptions" in cluster:
        yield "networkPolicy and tlsOptions are behind gates that are off"
    for group in [head, *cluster.get("workerGroupSpecs", [])]:
        yield from group_rules(group, scales, v2, version)


def group_rules(group, scales, v2, version):
    name = group.get("groupName", "head")
    start = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
        yield f"{name}: resources are said twice"
    if "labels" in start:
        yield f"{name}: labels belong into the group"
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if low is not None and high is not None and low > high:
        yield f"{name}: minReplicas is above maxReplicas"
    if name != "head" and not scales and None in (low, high):
        yield f"{name}: without an autoscaler both minReplicas and maxReplicas are needed"
    if group.get("priority") and (not v2 or version < (2, 56)):
        yield f"{name}: priority needs autoscaler v2 and rayVersion 2.56"
    if group.get("idleTimeoutSeconds") is not None and not v2:
        yield f"{name}: idleTimeoutSeconds needs autoscaler v2"
    if group["template"]["spec"].get("restartPolicy", "Never") != "Never" and v2:
        yield f"{name}: restartPolicy must be Never"
    if not group["template"]["spec"].get("containers"):
        yield f"{name}: no containers"


def test_every_document_is_taken(documents, errors):
    assert len(documents) == 12
    assert {key: errors(doc) for key, doc in documents.items() if errors(doc)} == {}


def test_every_rule_that_kuberay_wrote_in_its_schema_is_looked_at(documents):
    found = set(re.findall(r'"rule":"([^"]+)"', SCHEMA.read_text()))
    looked_at = {
        "!(has(self.jobStatus) && has(self.jobDeploymentStatus))",
        "has(self.jobStatus) || has(self.jobDeploymentStatus)",
    }
    of_fields_that_we_do_not_use = {
        "self == oldSelf",
        "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']",
        "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))",
        "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))",
    }
    assert found == looked_at | of_fields_that_we_do_not_use
    text = json.dumps(list(documents.values()))
    for name in ("managedBy", "onSuccess", "onFailure", "gcsFaultToleranceOptions"):
        assert f'"{name}"' not in text


TRAIN = ("train.yaml", "RayJob", "imagen-train-base")
CLUSTER = ("cluster.yaml", "RayCluster", "imagen")
RAYCRON = ("eval-raycron.yaml", "RayCronJob", "imagen-eval-hourly")
CRON = ("eval-cron.yaml", "CronJob", "imagen-eval")
POLICY = ("base.yaml", "NetworkPolicy", "imagen-ray-nodes")
TRAINERS = "spec.rayClusterSpec"
MUTATIONS = [
    (TRAIN, "spec.entrypont", "x", "entrypont"),
    (TRAIN, "spec.backoffLimit", "3", "backoffLimit"),
    (TRAIN, "spec.submissionMode", 1, "submissionMode"),
    (TRAIN, "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
    (TRAIN, "spec.preRunningDeadlineSeconds", 0, "preRunningDeadlineSeconds"),
    (TRAIN, "spec.clusterSelector", {"ray.io/cluster": "x"}, "clusterSelector"),
    (TRAIN, "spec.deletionStrategy", {"deletionRules": []}, "deletion"),
    (TRAIN, "metadata.name", "x" * 48, "longer"),
    (TRAIN, "metadata.name", "Train", "does not match"),
    (TRAIN, f"{TRAINERS}.autoscalerOptions.version", "v3", "v3"),
    (TRAIN, f"{TRAINERS}.autoscalerOptions.version", "v1", "priority"),
    (TRAIN, f"{TRAINERS}.rayVersion", "2.50.0", "rayVersion"),
    (TRAIN, f"{TRAINERS}.authOptions.mode", "tokens", "tokens"),
    (TRAIN, f"{TRAINERS}.networkPolicy", {"mode": "DenyAll"}, "gate"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.minReplica", 1, "minReplica"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.minReplicas", 99, "above"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.rayStartParams.num-gpus", "1", "twice"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.rayStartParams.block", True, "True"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.resources.GPU", 1, "1 is not"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.template.spec.container", [], "container"),
    (TRAIN, f"{TRAINERS}.workerGroupSpecs.0.template.spec.nodeSelector", [], "nodeSelector"),
    (TRAIN, f"{TRAINERS}.headGroupSpec.template.spec.restartPolicy", "Always", "restartPolicy"),
    (TRAIN, f"{TRAINERS}.headGroupSpec.template.spec.containers.0.envs", [], "envs"),
    (TRAIN, f"{TRAINERS}.headGroupSpec.template.spec.containers.0.env.0.valu", "1", "valu"),
    (CLUSTER, "spec.gcsFaultTolerance", {}, "gcsFaultTolerance"),
    (CLUSTER, "spec.workerGroupSpecs.1.priority", "high", "priority"),
    (RAYCRON, "spec.concurrencyPolicy", "Forbid", "concurrencyPolicy"),
    (RAYCRON, "spec.schedule", "hourly", "five fields"),
    (RAYCRON, "spec.jobTemplate.spec", {}, "spec"),
    (CRON, "spec.concurencyPolicy", "Forbid", "concurencyPolicy"),
    (CRON, "spec.jobTemplate.spec.template.spec.containers.0.commands", [], "commands"),
    (POLICY, "spec.ingress.0.ports", [{"prot": 1}], "prot"),
]


@pytest.mark.parametrize(
    ("key", "path", "value", "said"), MUTATIONS, ids=[f"{m[1]}={m[2]}" for m in MUTATIONS]
)
def test_a_wrong_document_is_refused_with_the_reason(documents, errors, key, path, value, said):
    doc = copy.deepcopy(documents[key])
    *parents, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    node = doc
    for parent in parents:
        node = node[parent]
    node[last] = value
    found = errors(doc)
    assert any(said in error for error in found), found


def pods(cluster):
    """Yield (group, pod spec) of a cluster, the head's first."""
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group, group["template"]["spec"]


@pytest.fixture(scope="module")
def clusters(documents):
    """The clusters by file."""
    return {key[0]: c for key, doc in documents.items() if (c := cluster_of(doc)) is not None}


def is_spot(pod):
    return pod["nodeSelector"]["imagen.io/pool"].endswith("-spot")


def test_heads_run_no_work_on_machines_that_stay(clusters):
    assert len(clusters) == 6
    for cluster in clusters.values():
        head, pod = next(pods(cluster))
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert not is_spot(pod)
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["autoscalerOptions"]["version"] == "v2"


def test_every_container_is_unprivileged_and_sized(clusters, documents):
    found = [pod["containers"][0] for cluster in clusters.values() for _, pod in pods(cluster)]
    cron = documents[CRON]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for container in [*found, *cron["containers"]]:
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert set(container["resources"]) == {"requests", "limits"}


def test_the_drain_ends_within_what_gke_gives_a_spot_pod(clusters):
    for cluster in clusters.values():
        for group, pod in list(pods(cluster))[1:]:
            env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
            drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert drain < pod["terminationGracePeriodSeconds"] <= 15, group["groupName"]


def test_spot_is_first_and_machines_that_stand_in_are_the_same(clusters):
    for name, cluster in clusters.items():
        fences = {}
        for group in cluster["workerGroupSpecs"]:
            if group.get("priority") is not None:
                fences.setdefault(str(group["resources"]), []).append(group)
        assert fences or name not in ("train.yaml", "cluster.yaml")
        for groups in fences.values():
            first, second = sorted(groups, key=lambda group: -group["priority"])
            assert first["priority"] > second["priority"]
            assert is_spot(first["template"]["spec"])
            assert not is_spot(second["template"]["spec"])
            machines = [g["template"]["spec"]["containers"][0]["resources"] for g in groups]
            assert machines[0] == machines[1]  # priorities decide among equal utilizations only
            least = [(g["minReplicas"], g["replicas"]) for g in (first, second)]
            assert least == [(0, 0), (1, 1)]  # a cluster is ready also when there is no spot


def test_heads_say_what_their_machines_will_have(clusters, monkeypatch):
    told = {}
    for name, cluster in clusters.items():
        groups = cluster["workerGroupSpecs"]
        has = {r for g in groups for r in g.get("resources", {}) if r != "CPU"}
        limits = [pod["containers"][0]["resources"]["limits"] for _, pod in pods(cluster)]
        has |= {"GPU"} if any("nvidia.com/gpu" in limit for limit in limits) else set()
        (head, *_), env = pods(cluster), {}
        for variable in head[1]["containers"][0]["env"]:
            env[variable["name"]] = variable["value"]
        monkeypatch.setenv(session.EXPECTS, env.get(session.EXPECTS, ""))
        told[name] = (set(session.expected()), has)
    assert told.pop("preencode.yaml")[0] == set()  # preencode.actors asks for what is configured
    assert told.pop("cluster-cpu.yaml") == (set(), set())
    assert len(told) == 4
    assert {name: says for name, (says, has) in told.items() if says != has} == {}


def test_who_is_told_to_run_something_waits_for_the_cluster_first(infra):
    wait = "wait --for=condition=RayClusterProvisioned raycluster/imagen"
    readme = (infra / "README.md").read_text()
    header = (infra / "kuberay" / "cluster.yaml").read_text().split("apiVersion")[0]
    for text in (header, *re.findall(r"```bash\n(.*?)```", readme, re.S)):
        lines = text.splitlines()
        made = [n for n, line in enumerate(lines) if re.search(r"/cluster(-cpu)?\.yaml \|", line)]
        for number in made:
            assert wait in lines[number + 1]
    assert len(re.findall(wait, readme)) == 2
    assert wait in header


def test_what_ray_counts_is_what_the_pod_has(clusters):
    for cluster in clusters.values():
        for group in cluster["workerGroupSpecs"]:
            told = group.get("resources", {})
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert told.get("CPU", limits["cpu"]) == limits["cpu"]
            if told:
                assert told.get("GPU") == limits.get("nvidia.com/gpu")


def test_fences_are_those_that_the_stages_look_for(clusters):
    found = {}
    for name, cluster in clusters.items():
        fences = [r for g in cluster["workerGroupSpecs"] for r in g.get("resources", {})]
        found[name] = {fence for fence in fences if fence.startswith("imagen_")}
    assert found.pop("cluster.yaml") == {"imagen_base", "imagen_sr1", POOL}
    assert found.pop("train.yaml") == {"imagen_base"}
    assert set().union(*found.values()) == set()
    assert VALIDATION not in str(clusters)  # its nodes would have to be there all the time
    elastic = (ROOT / "train" / "elastic.py").read_text()
    assert 'f"imagen_{job.member}"' in elastic


def test_pods_that_ask_for_spot_or_gpus_take_their_taints(clusters):
    for cluster in clusters.values():
        for _, pod in pods(cluster):
            keys = {toleration["key"] for toleration in pod.get("tolerations", [])}
            gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
            assert ("cloud.google.com/gke-spot" in keys) == is_spot(pod)
            assert ("nvidia.com/gpu" in keys) == gpu


def test_training_runs_as_who_cannot_delete_data_sets(documents):
    accounts = {}
    for (name, *_), doc in documents.items():
        found = re.findall(r'"serviceAccountName": "([^"]+)"', json.dumps(doc))
        accounts.setdefault(name, set()).update(found)
    declared = {name for _, kind, name in documents if kind == "ServiceAccount"}
    for name in ("train.yaml", "eval.yaml", "eval-raycron.yaml", "eval-cron.yaml"):
        assert accounts[name] == {"imagen-train"}
    assert accounts["preencode.yaml"] == {"imagen-data"}
    assert set().union(*accounts.values()) == declared


def settings(text):
    """Yield (line number, name) of each variable of Ray that is set in a file."""
    for number, line in enumerate(text.splitlines()):
        match = re.match(r"\s*- \{?name: (RAY_\w+)", line)
        if match:
            yield number, match[1]


def test_every_setting_of_ray_says_why():
    for path in FILES:
        lines = path.read_text().splitlines()
        for number, name in settings(path.read_text()):
            above = number
            while re.match(r"\s*- \{?name: RAY_|\s+(value|valueFrom|secretKeyRef)", lines[above]):
                above -= 1
            said = lines[above].lstrip().startswith("#") or "} # " in lines[number]
            assert said, f"{path.name}:{number + 1} {name}"


def known_to_ray(names):
    """Return those of the names that the installed Ray reads: in Python, or in its C++ parts."""
    package = Path(ray.__file__).parent
    found = set()
    binaries = [package / "_raylet.so", *package.glob("core/src/ray/**/gcs_server")]
    for path in binaries:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for name in names:
                for spelled in (name, name.removeprefix("RAY_")):  # RAY_CONFIG adds the prefix
                    if data.find(spelled.encode()) >= 0:
                        found.add(name)
    for path in SOURCES:
        text = (package / path).read_text()
        found |= {name for name in names if f'"{name}"' in text}
    return found


SOURCES = (
    "_private/ray_constants.py",
    "dashboard/modules/job/job_supervisor.py",
    "autoscaler/v2/instance_manager/config.py",
    "autoscaler/_private/constants.py",
    "_private/authentication/authentication_constants.py",
    "_private/authentication/authentication_token_setup.py",
)
NOT_SETTINGS = {"RAY_HEAD_IP", "RAY_API_SERVER_ADDRESS", "RAY_TRAIN_"}


def test_every_setting_that_is_named_exists_in_this_ray(infra):
    files = [*FILES, infra / "ray-up" / "gcp.yaml", infra / "README.md", infra / "Dockerfile"]
    named = {name for path in files for name in NODE_SETTINGS.findall(path.read_text())}
    named -= NOT_SETTINGS
    named = {name for name in named if not name.startswith(("RAY_TRAIN_", "RAY_USAGE_"))}
    assert len(named) >= 9
    assert named - known_to_ray(named) == set()
    assert known_to_ray({"RAY_health_check_perod_ms", "RAY_JOB_STOP_SIGNALS"}) == set()


def test_ray_is_notified_because_bash_gives_way_to_it():
    """KubeRay starts `bash -c -- "ulimit …; ray start … --block "`: a bash that stayed would be
    process 1 and swallow the SIGTERM of Kubernetes.
    """
    text = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-1024}; sleep 60 "
    with subprocess.Popen(["/bin/bash", "-c", "--", text]) as process:
        name = Path(f"/proc/{process.pid}/comm")
        while name.read_text().strip() != "sleep":  # until bash has become it
            assert process.poll() is None, "bash stayed, and waited for it"
        process.terminate()
        assert process.wait() == -signal.SIGTERM


def test_a_stopped_job_has_the_time_that_the_pipeline_gives_it(infra, clusters):
    wanted = f"RAY_JOB_STOP_WAIT_TIME_S={STOP_WAIT_S}"
    for path in ("ray-up/gcp.yaml", "README.md"):
        assert wanted in (infra / path).read_text()
    for cluster in clusters.values():
        _, pod = next(pods(cluster))
        env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert env["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)


def test_the_readme_names_the_release_that_is_checked(infra):
    text = (infra / "README.md").read_text()
    assert f"--version {RELEASE}.0" in text
    assert RELEASE in SCHEMA.name


def commands(documents):
    """Return the command lines that the files start, by file."""
    found = {
        key[0]: shlex.split(j["entrypoint"]) for key, d in documents.items() if (j := job_of(d))
    }
    (container,) = documents[CRON]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return found | {"eval-cron.yaml": [*container["command"], *container["args"]]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preencode.yaml", "train.yaml", "eval.yaml"])
def test_entrypoints_are_commands_that_work(documents, name, tmp_path):
    words = commands(documents)[name]
    config = ROOT / "pipeline" / "configs" / "digits.yaml"
    words = [str(config) if word.startswith("gs://") else word for word in words]
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:], "--dry-run", f"out={tmp_path}/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "unrecognized" not in done.stderr
    assert done.returncode == 0 or "hint:" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_cron_job_s_command_is_one_that_exists(documents):
    from pipeline.__main__ import parser

    assert commands(documents)["eval-raycron.yaml"] == commands(documents)["eval.yaml"]
    words = commands(documents)["eval-cron.yaml"]
    assert words[:3] == ["python", "-m", "pipeline"]
    args = parser().parse_args(words[3:])
    assert (args.stage, args.code, args.options) == ("eval", "image", "--all")
