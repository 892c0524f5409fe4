"""A small project on disk: real shards, index and embeddings, made without the preencode stage."""

import dataclasses
import io
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen import config as configs
from imagen import storage
from imagen.data import embeddings, index, prepared
from imagen.data.digits import caption, images
from imagen.data.tars import write_tar
from imagen.manifest import fingerprint
from imagen.text.config import TextConfig
from train.config import TrainStageConfig

DIM = 16
TEXT = TextConfig(encoder="local-test", max_tokens=16)

TREE = {
    "name": "tiny",
    "seed": 3,
    "data": {"heldout": 0.1},
    "text": {"encoder": "local-test", "max_tokens": 16},
    "members": {
        "base": {
            "size": 8,
            "network": {
                "kind": "base",
                "channels": 1,
                "widths": [16],
                "blocks": [1],
                "self_attention": [False],
                "cross_attention": [True],
                "text_dim": DIM,
                "cond_dim": 16,
                "head_dim": 16,
            },
        },
        "sr1": {
            "size": 16,
            "network": {
                "kind": "efficient",
                "channels": 1,
                "widths": [16, 16],
                "blocks": [1, 1],
                "self_attention": [False, False],
                "cross_attention": [False, True],
                "text_dim": DIM,
                "cond_dim": 16,
                "head_dim": 16,
            },
        },
    },
    "train": {
        name: {
            "images": 160,
            "global_batch": 8,
            "microbatch": 8,
            "lanes": 2,
            "window": 16,
            "lr": 2e-3,
            "checkpoint_every": 40,
            "snapshot_every": 80,
            "log_every": 8,
            "validate": 0,
            "grid": 0,
        }
        for name in ("base", "sr1")
    },
}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def write_shard(folder: str, name: str, samples: list[tuple[str, bytes, str]]) -> dict:
    """Write one tar, its index and its embeddings; return the manifest of the index."""
    tar = write_tar([(k, {"png": p, "txt": text.encode()}) for k, p, text in samples])
    path = f"{folder}/data/{name}.tar"
    storage.put(path, tar)
    found = index.index_tar(tar, path, 0.1)
    where = prepared.relative_tar(f"{folder}/index", path)
    source = {"tar": where, "tar_crc32c": storage.crc32c(tar)}
    body = index.publish(f"{folder}/index", name, found, source)
    rng = np.random.default_rng(len(samples))
    lengths = rng.integers(2, 7, len(found.captions))
    values = rng.normal(size=(lengths.sum(), DIM)).astype(np.float16)
    layout = embeddings.Layout(
        ids=np.zeros(len(values), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        slots=np.arange(len(found.captions), dtype=np.int32),
        keys=found.keys,
    )
    facts = {
        "encoder": "0" * 16,
        "digest": found.digest,
        **dict.fromkeys(("truncated", "lost_tokens", "empty"), 0),
    }
    home = f"{folder}/embeddings/{'0' * 16}"
    embeddings.publish_shard(home, name, layout, DIM, lambda out: np.copyto(out, values), facts)
    return body


def write_data(folder: str, sizes: tuple[int, ...] = (40, 31, 25)) -> None:
    """Write shards of real digits."""
    scans, number, bodies = images(), 0, []
    for shard, size in enumerate(sizes):
        samples = []
        for _ in range(size):
            scan, digit = scans[number]
            samples.append((f"s{number:04d}", png(scan), f"{caption(digit, 1)} {number}"))
            number += 1
        bodies.append((f"{shard:05d}", samples))
    published = [write_shard(folder, name, samples) for name, samples in bodies]
    prepared.publish(f"{folder}/index", published, 0.1)
    root = f"{folder}/embeddings/{'0' * 16}"
    embeddings.publish_encoder(root, TEXT, "0" * 16, np.zeros((1, DIM), np.float16))
    counts = [
        {**b, "captions": 1, "tokens": 1, "truncated": 0, "lost_tokens": 0} for b in published
    ]
    embeddings.publish_set(root, "0" * 16, fingerprint("data"), counts)


def make_config(folder: str, **train: object) -> TrainStageConfig:
    """Return the tiny project's config below `folder`, with keys of both `train` sections set."""
    sections = {name: {**section, **train} for name, section in TREE["train"].items()}
    return configs.build(TrainStageConfig, {**TREE, "out": folder, "train": sections})


def changed(config: TrainStageConfig, name: str, **sections: object) -> TrainStageConfig:
    """Return a config with keys of one member's sections set; `size`, too."""
    member = config.members[name]
    values = {
        key: dataclasses.replace(getattr(member, key), **value)
        if isinstance(value, dict)
        else value
        for key, value in sections.items()
    }
    members = {**config.members, name: dataclasses.replace(member, **values)}
    return dataclasses.replace(config, members=members)


@pytest.fixture
def project(tmp_path: Path) -> str:
    """A folder with a prepared and encoded data set of 96 samples."""
    write_data(str(tmp_path))
    return str(tmp_path)


@pytest.fixture(scope="session")
def helpers():
    """What tests of this folder share: tests are no package, so they cannot import it."""
    return types.SimpleNamespace(
        write_data=write_data,
        write_shard=write_shard,
        make_config=make_config,
        changed=changed,
        png=png,
        TREE=TREE,
    )
