"""The data sets that bench_loader.py reads."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagen import storage
from imagen.config import build, parse_yaml
from imagen.data import digits as scans
from imagen.data import embeddings, index, prepared
from imagen.data.tars import write_tar
from imagen.manifest import fingerprint
from imagen.text.config import TextConfig
from train.config import TrainStageConfig

SHARDS = 4
WIDTH = 256
"""Of the embeddings of photographs; 20 tokens a caption."""
TOKENS = 20
ENCODER = "0" * 16
TRAIN = {"images": 10**6, "checkpoint_every": 10**6, "snapshot_every": 10**6, "log_every": 10**6}

Sample = tuple[str, dict[str, bytes]]


def photographs(side: int, count: int) -> list[Sample]:
    """Return cuts of two photographs as JPEGs of quality 95, `side` pixels wide."""
    from sklearn.datasets import load_sample_images

    rng, photos = np.random.default_rng(0), load_sample_images().images
    found: list[Sample] = []
    for i in range(count):
        y, x = rng.integers(0, 427 - 256, 2)
        cut = Image.fromarray(np.ascontiguousarray(photos[i % 2][y : y + 256, x : x + 256]))
        out = io.BytesIO()
        cut.resize((side, side), Image.Resampling.LANCZOS).save(out, "jpeg", quality=95)
        text = f"photograph {i} of a temple or a flower"
        found.append((f"s{i:05d}", {"jpg": out.getvalue(), "txt": text.encode()}))
    return found


def numerals() -> list[Sample]:
    """Return the digits as `preencode import` makes them."""
    found: list[Sample] = []
    for i, (image, digit) in enumerate(scans.images()):
        out = io.BytesIO()
        image.save(out, "png")
        text = scans.caption(digit, i % len(scans.PHRASINGS)).encode()
        found.append((f"s{i:05d}", {"png": out.getvalue(), "txt": text}))
    return found


def write(folder: str, samples: list[Sample], text: TextConfig, dim: int) -> None:
    """Write samples as shards with an index, and embeddings of random values."""
    bodies, root = [], f"{folder}/embeddings/{ENCODER}"
    for shard in range(SHARDS):
        name = f"{shard:05d}"
        tar, path = write_tar(samples[shard::SHARDS]), f"{folder}/data/{shard:05d}.tar"
        storage.put(path, tar)
        found = index.index_tar(tar, path, 0.0)
        source = {"tar": f"../data/{name}.tar", "tar_crc32c": storage.crc32c(tar)}
        bodies.append(index.publish(f"{folder}/index", name, found, source))
        rows = len(found.keys)
        layout = embeddings.Layout(
            ids=np.zeros(rows * TOKENS, np.int32),
            offsets=np.arange(rows + 1) * TOKENS,
            slots=np.arange(rows, dtype=np.int32),
            keys=found.keys,
        )
        counts = dict.fromkeys(("truncated", "lost_tokens", "empty"), 0)
        facts = {"encoder": ENCODER, "digest": found.digest, **counts}
        values = np.random.default_rng(shard).normal(size=(rows * TOKENS, dim))

        def fill(out: np.ndarray, values: np.ndarray = values) -> None:
            np.copyto(out, values, casting="same_kind")

        bodies[-1] |= embeddings.publish_shard(root, name, layout, dim, fill, facts)
    prepared.publish(f"{folder}/index", bodies, 0.0)
    embeddings.publish_encoder(root, text, ENCODER, np.zeros((1, dim), np.float16))
    embeddings.publish_set(root, ENCODER, fingerprint("data"), bodies)


def project(folder: str, side: int, count: int, batch: int) -> TrainStageConfig:
    """Write photographs, also as single files; return the config of a member of their size."""
    samples = photographs(side, count)
    files = Path(folder, "files")
    files.mkdir(parents=True)
    for key, parts in samples:
        for extension, content in parts.items():
            (files / f"{key}.{extension}").write_bytes(content)
    write(folder, samples, TextConfig(), WIDTH)
    levels = {"self_attention": [False], "cross_attention": [True], "widths": [32], "blocks": [1]}
    network = {"kind": "base", "text_dim": WIDTH, "cond_dim": 32, "head_dim": 32, **levels}
    train = {**TRAIN, "global_batch": batch, "microbatch": batch, "lanes": 4, "window": count // 4}
    tree = {
        "name": "bench",
        "out": folder,
        "data": {"heldout": 0.0},
        "members": {"base": {"size": side, "network": network}},
        "train": {"base": train},
    }
    return build(TrainStageConfig, tree)


def digits(folder: str, **train: object) -> TrainStageConfig:
    """Return the config of the digits demo, below `folder`; its data is made when missing."""
    path = Path(__file__).parents[1] / "pipeline/configs/digits.yaml"
    tree = parse_yaml(path.read_text(), str(path))
    sections = {name: {**section, **train} for name, section in tree["train"].items()}
    keys = ("name", "seed", "members", "text")
    tree = {key: tree[key] for key in keys} | {"out": folder, "train": sections}
    config = build(TrainStageConfig, tree | {"data": {"heldout": 0.0}})
    if not Path(folder).exists():
        write(folder, numerals(), config.text, config.members["base"].network.text_dim)
    return config
