"""The mosaicml-streaming side of bench_loader.py, in an environment of its own.

Reads lines from stdin: `limit`, `iterate` or `end`; answers each with images per CPU second.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from streaming import (  # pyright: ignore[reportMissingImports]
    MDSWriter,
    StreamingDataset,
)


def convert(files: Path, folder: Path) -> int:
    """Write the images as MDS, 4 shards; return how many there are."""
    paths = sorted(files.glob("*.jpg"))
    size = sum(path.stat().st_size for path in paths) // 4
    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "str"}, size_limit=size) as out:
        for path in paths:
            out.write({"jpg": path.read_bytes(), "txt": path.with_suffix(".txt").read_text()})
    return len(paths)


def pixels(data: bytes) -> np.ndarray:
    """Return an image as uint8 (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def batches(dataset: StreamingDataset, size: int) -> Iterator[np.ndarray]:
    """Yield the images of an epoch in batches."""
    held: list[np.ndarray] = []
    for sample in dataset:
        held.append(pixels(sample["jpg"]))
        if len(held) == size:
            yield np.stack(held)
            held = []


def main() -> None:
    """Answer what is asked until told to end."""
    files, folder, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    count = convert(files, folder)
    raw = [path.read_bytes() for path in sorted(files.glob("*.jpg"))]
    dataset = StreamingDataset(
        local=str(folder), shuffle=True, batch_size=batch, num_canonical_nodes=1
    )

    def limit() -> None:
        for data in raw:
            pixels(data)

    def iterate() -> None:
        for _ in batches(dataset, batch):
            pass

    work: dict[str, Callable[[], None]] = {"limit": limit, "iterate": iterate}
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        began = time.process_time()
        work[line.strip()]()
        print(count / (time.process_time() - began), flush=True)


if __name__ == "__main__":
    main()
