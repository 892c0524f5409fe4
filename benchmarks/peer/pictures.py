"""The data that both training loops read: real JPEGs and text embeddings, once for each.

Ours: tar shards, their index, and ragged embedding shards, as `python -m preencode` leaves them.
Theirs: a folder of the same files, `.jpg` beside `.npy`.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagen import storage
from imagen.data import embeddings, index, prepared
from imagen.data.tars import write_tar
from imagen.manifest import fingerprint
from imagen.text.config import TextConfig

SHARDS, EACH = 2, 96
ENCODER = "0" * 16


def write(folder: str, size: int, tokens: int, dim: int) -> None:
    """Write `SHARDS * EACH` photographs of `size` pixels with up to `tokens` text tokens each."""
    rng = np.random.default_rng(0)
    files = Path(folder) / "files"
    files.mkdir(parents=True)
    bodies, counts = [], []
    for shard in range(SHARDS):
        samples, rows = [], []
        for i in range(EACH):
            key, data = f"s{shard}{i:04d}", _jpeg(rng, size)
            rows.append(rng.normal(size=(int(rng.integers(8, tokens + 1)), dim)))
            samples.append((key, {"jpg": data, "txt": f"photograph {shard} {i}".encode()}))
            (files / f"{key}.jpg").write_bytes(data)
            np.save(files / f"{key}.npy", rows[-1].astype(np.float16))
        bodies.append(_publish(folder, f"{shard:05d}", samples, rows))
        counts.append(sum(map(len, rows)))
    prepared.publish(f"{folder}/index", bodies, 0.0)
    root = f"{folder}/embeddings/{ENCODER}"
    text = text_of(tokens)
    embeddings.publish_encoder(root, text, ENCODER, np.zeros((1, dim), np.float16))
    facts = dict.fromkeys(("truncated", "lost_tokens"), 0)
    sets = [
        {**body, "captions": EACH, "tokens": count, **facts}
        for body, count in zip(bodies, counts, strict=True)
    ]
    embeddings.publish_set(root, ENCODER, fingerprint("data"), sets)


def text_of(tokens: int) -> TextConfig:
    """Return the encoder that the embeddings are said to be of."""
    return TextConfig(encoder="local-bench", max_tokens=tokens)


def _publish(folder: str, name: str, samples: list, rows: list[np.ndarray]) -> dict:
    """Write one tar, its index and its embeddings; return the manifest of the index."""
    tar, path = write_tar(samples), f"{folder}/data/{name}.tar"
    storage.put(path, tar)
    found = index.index_tar(tar, path, 0.0)
    where = prepared.relative_tar(f"{folder}/index", path)
    body = index.publish(
        f"{folder}/index", name, found, {"tar": where, "tar_crc32c": storage.crc32c(tar)}
    )
    values = np.concatenate(rows).astype(np.float16)
    layout = embeddings.Layout(
        ids=np.zeros(len(values), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        slots=np.arange(len(rows), dtype=np.int32),
        keys=found.keys,
    )
    facts = {"encoder": ENCODER, "digest": found.digest}
    facts |= dict.fromkeys(("truncated", "lost_tokens", "empty"), 0)
    root = f"{folder}/embeddings/{ENCODER}"
    embeddings.publish_shard(
        root, name, layout, values.shape[1], lambda out: np.copyto(out, values), facts
    )
    return body


def _jpeg(rng: np.random.Generator, size: int) -> bytes:
    """Return a cut of one of scikit-learn's two photographs, as JPEG of quality 95."""
    from sklearn.datasets import load_sample_images

    photo = load_sample_images().images[int(rng.integers(2))]
    side = int(rng.integers(size, 400))
    y, x = (int(rng.integers(0, edge - side + 1)) for edge in photo.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(photo[y : y + side, x : x + side]))
    out = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(out, "jpeg", quality=95)
    return out.getvalue()
