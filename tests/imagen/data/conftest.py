import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from imagen import storage
from imagen.data import index, prepared, tars

Samples = list[tuple[str, dict[str, bytes]]]


def png(level: int = 0, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), level).save(out, "png")
    return out.getvalue()


@pytest.fixture
def samples() -> Callable[..., Samples]:
    """A maker of good samples: `samples(5, "cat")` gives keys cat000 to cat004."""

    def make(count: int, prefix: str = "s") -> Samples:
        return [
            (f"{prefix}{i:03d}", {"png": png(i), "txt": f"caption {prefix} {i}".encode()})
            for i in range(count)
        ]

    return make


@pytest.fixture
def index_folder() -> Callable[..., prepared.Prepared]:
    """Index tars, given as shard name -> bytes, below a project folder, and open the result."""

    def build(out: str | Path, shards: dict[str, bytes], heldout: float = 0.2):
        out = str(out)
        bodies = []
        for name, data in shards.items():
            tar = storage.join(out, "data", f"{name}.tar")
            storage.put(tar, data)
            found = index.index_tar(tars.open_tar(tar), tar, heldout)
            folder = storage.join(out, "index")
            source = {
                "tar": prepared.relative_tar(folder, tar),
                "tar_crc32c": storage.crc32c(data),
            }
            bodies.append(index.publish(folder, name, found, source))
        prepared.publish(storage.join(out, "index"), bodies, heldout)
        return prepared.Prepared.open(storage.join(out, "index"))

    return build
