"""Make kuberay-v1.7.0.json: what Kubernetes and KubeRay take, closed, without descriptions.

    git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay /tmp/kuberay
    pip install --no-deps --target /tmp/kubernetes kubernetes-validate==1.37.0
    python tests/infra/schema/make.py /tmp/kuberay/ray-operator/config/crd/bases /tmp/kubernetes

Equal parts are stored once, under `$defs`. Three changes make the schemas stricter or JSON's own:
unknown fields are refused, `x-kubernetes-int-or-string` becomes types, status is left out.
"""

import hashlib
import json
import sys
from pathlib import Path

import yaml

CRDS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCronJob": "ray.io_raycronjobs.yaml",
}
KUBERNETES = "v1.34.0-local"
NATIVE = {
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "CronJob": "io.k8s.api.batch.v1.CronJob",
    "Namespace": "io.k8s.api.core.v1.Namespace",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
DROPPED = {"description", "status", "$schema", "x-kubernetes-group-version-kind", "format"}
KEPT = {"x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields"}
OUT = Path(__file__).with_name("kuberay-v1.7.0.json")


def closed(node, is_names=False):
    """Return a schema with every object closed; `is_names`: its keys are names of fields."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if is_names:
        return {name: closed(value) for name, value in node.items() if name != "status"}
    out: dict = {}
    for key, value in node.items():
        if key in DROPPED or (key.startswith("x-kubernetes") and key not in KEPT):
            continue
        out[key] = closed(value, is_names=key == "properties")
    if node.get("x-kubernetes-int-or-string"):
        out = {"type": ["integer", "string"]}
    if "properties" in out and not node.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


def shared(node, pool):
    """Return a schema whose larger parts are references into `pool`, by their content."""
    if isinstance(node, list):
        return [shared(item, pool) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: shared(value, pool) for key, value in node.items()}
    text = json.dumps(out, sort_keys=True)
    is_schema = isinstance(out.get("type"), str | list)  # not a field whose name is "type"
    if not is_schema or len(text) < 100:
        return out
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    pool[name] = out
    return {"$ref": f"#/$defs/{name}"}


def kuberay(folder: Path) -> dict:
    """Return the schemas of KubeRay's kinds."""
    found = {}
    for kind, name in CRDS.items():
        crd = yaml.load((folder / name).read_text(), Loader=yaml.CSafeLoader)
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        found[kind] = closed(version["schema"]["openAPIV3Schema"])
    return found


def kubernetes(folder: Path) -> dict:
    """Return the schemas of Kubernetes's own kinds that infra/ uses."""
    root = folder / "kubernetes_validate" / "kubernetes-json-schema" / KUBERNETES
    definitions = json.loads((root / "_definitions.json").read_text())["$defs"]

    def resolved(node):
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        if isinstance(node.get("$ref"), str):
            return resolved(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in node.items()}

    return {kind: closed(resolved(definitions[name])) for kind, name in NATIVE.items()}


def main(crds: str, native: str) -> None:
    """Write the file."""
    kinds = kuberay(Path(crds)) | kubernetes(Path(native))
    for kind in kinds.values():
        kind["properties"]["metadata"] = METADATA
    pool: dict = {}
    top = {kind: shared(schema, pool) for kind, schema in kinds.items()}
    text = json.dumps({"kinds": top, "$defs": pool}, separators=(",", ":"), sort_keys=True)
    OUT.write_text(text + "\n")
    print(f"{OUT}: {len(text)} bytes, {len(pool)} definitions")


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
}
"""Kubernetes checks it apart from the kinds; what infra/ uses of it."""

if __name__ == "__main__":
    main(*sys.argv[1:])
