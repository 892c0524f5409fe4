"""A tiny digits project whose members are untrained: everything that eval needs, in seconds."""

import io
import json
import types

import pytest
import torch

from eval.config import EvalConfig
from imagen import config as configs
from imagen import snapshot, storage
from imagen.data import index, prepared
from imagen.data.digits import PHRASINGS, caption, images
from imagen.data.tars import write_tar
from imagen.network.unet import build
from imagen.text.config import TextConfig
from imagen.text.encoder import encoder_fingerprint

NETWORK = {
    "channels": 1,
    "text_dim": 256,
    "cond_dim": 16,
    "head_dim": 16,
}
TREE = {
    "name": "tiny digits",
    "members": {
        "base": {
            "size": 8,
            "network": NETWORK
            | {
                "kind": "base",
                "widths": [16],
                "blocks": [1],
                "self_attention": [False],
                "cross_attention": [True],
            },
            "sampling": {"steps": 2},
        },
        "sr1": {
            "size": 32,
            "network": NETWORK
            | {
                "kind": "efficient",
                "widths": [16, 16],
                "blocks": [1, 1],
                "self_attention": [False, False],
                "cross_attention": [False, True],
            },
            "sampling": {"steps": 2},
        },
    },
    "eval": {"count": 20, "grid": {"prompts": 3, "seeds": 2}},
}


def make_config(folder, **section):
    tree = {**TREE, "out": str(folder), "eval": {**TREE["eval"], **section}}
    return configs.build(EvalConfig, tree)


def write_config(folder, **section):
    """Write the config as a file; return its path."""
    path = f"{folder}/config.yaml"
    storage.put(path, configs.dump_yaml(make_config(folder, **section)).encode())
    return path


def write_data(folder, count=240):
    samples = []
    for number, (scan, digit) in enumerate(images()[:count]):
        out = io.BytesIO()
        scan.save(out, "png")
        text = caption(digit, number % len(PHRASINGS))
        samples.append((f"d{number:04d}", {"png": out.getvalue(), "txt": text.encode()}))
    tar, path = write_tar(samples), f"{folder}/data/00000.tar"
    storage.put(path, tar)
    found = index.index_tar(tar, path, 0.2)
    source = {
        "tar": prepared.relative_tar(f"{folder}/index", path),
        "tar_crc32c": storage.crc32c(tar),
    }
    body = index.publish(f"{folder}/index", "00000", found, source)
    prepared.publish(f"{folder}/index", [body], 0.2)


def write_snapshot(config, member, images_seen=640, seed=0, **provenance):
    """Save random weights as a snapshot of `member`, and a log as training leaves it."""
    torch.manual_seed(seed)
    net = build(config.members[member].network)
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in _floats(net)}
    folder = f"{config.run_dir(member)}/snapshots/{images_seen:012d}"
    facts = {
        "images_seen": images_seen,
        "data_fingerprint": _data_fingerprint(config),
        "encoder_fingerprint": encoder_fingerprint(TextConfig()),
        "code_version": "test",
    }
    snapshot.save(folder, member, config.members[member], state, facts | provenance)
    events = [
        {"time": 1000.0 + i, "images_seen": 32 * i, "loss": 1 / (i + 1)} for i in range(1, 21)
    ]
    log = "\n".join(json.dumps(e) for e in [{"time": 1000.0, "event": "start"}, *events])
    storage.put(f"{config.run_dir(member)}/log.jsonl", log.encode() + b"\n")
    return folder


def _data_fingerprint(config):
    """What the members saw: the data that `write_data` has prepared, if it has."""
    if not storage.exists(f"{config.index}/manifest.json"):
        return "d" * 16
    return prepared.Prepared.open(config.index).fingerprint


def _floats(net):
    return [(name, value) for name, value in net.state_dict().items()]


@pytest.fixture
def project(tmp_path):
    """The config of a prepared project with untrained snapshots of both members."""
    config = make_config(tmp_path)
    write_data(tmp_path)
    for member in config.members:
        write_snapshot(config, member)
    return config


@pytest.fixture(scope="session")
def tiny():
    """What tests of this folder share: tests are no package, so they cannot import it."""
    return types.SimpleNamespace(
        make_config=make_config,
        write_config=write_config,
        write_data=write_data,
        write_snapshot=write_snapshot,
        TREE=TREE,
    )
