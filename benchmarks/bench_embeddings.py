"""Reading text embeddings for training: our ragged memory map beside what others store.

The same captions (lognormal lengths, mean about 19 tokens) and the same values in each format,
batches of 64 in a block-shuffled order, in the page cache, one thread, CPU seconds, formats in
turns.

    python benchmarks/bench_embeddings.py [ROUNDS]
"""

import io
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from imagen.data import arrays, tars
from train.data import pad

DIMS = {512: 4096, 1024: 2048, 4096: 512}
"""Width to number of captions: 80 MB to 160 MB of float16 each."""
BATCH, PADDED = 64, 128
Batch = torch.Tensor


class Ours:
    """Tokens end to end in one `.npy`, offsets beside; read through a memory map."""

    def __init__(self, folder: Path, rows: list[np.ndarray]) -> None:
        flat = np.concatenate(rows)
        path = str(folder / "tokens.npy")
        arrays.write_npy(path, flat.shape, np.float16, lambda out: np.copyto(out, flat))
        self.tokens = np.load(path, mmap_mode="r").view(np.ndarray)
        self.offsets = np.cumsum([0, *map(len, rows)])
        self.bytes = os.stat(path).st_size + self.offsets.nbytes

    def packed(self, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens end to end and lengths: what a loader's worker hands over."""
        rows = [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in batch]
        lengths = torch.tensor([len(row) for row in rows])
        return torch.from_numpy(np.concatenate(rows)), lengths

    def padded(self, batch: np.ndarray) -> Batch:
        """Return the padded float32 batch that a network takes."""
        return pad(*self.packed(batch)).emb


class NpzTar:
    """An `.npz` for each caption in a tar that is indexed, as PixArt's features are packed."""

    def __init__(self, folder: Path, rows: list[np.ndarray]) -> None:
        self.path = folder / "npz.tar"
        parts = [(f"{i:06d}", {"npz": _npz(row)}) for i, row in enumerate(rows)]
        self.path.write_bytes(tars.write_tar(parts))
        self.tar = tars.open_tar(str(self.path))
        members = tars.list_members(self.tar, str(self.path)).members
        self.places = [(m.offset, m.size) for m in members]
        self.bytes = self.path.stat().st_size

    def packed(self, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens end to end and lengths."""
        rows = []
        for i in batch:
            start, size = self.places[i]
            rows.append(np.load(io.BytesIO(self.tar[start : start + size]))["caption_feature"])
        lengths = torch.tensor([len(row) for row in rows])
        return torch.from_numpy(np.concatenate(rows)), lengths

    def padded(self, batch: np.ndarray) -> Batch:
        """Return the padded float32 batch."""
        return pad(*self.packed(batch)).emb


class PaddedFloat:
    """Every caption padded with zeros to 128 tokens of float32 in one memory map."""

    def __init__(self, folder: Path, rows: list[np.ndarray]) -> None:
        path = str(folder / "padded.npy")
        shape = (len(rows), PADDED, rows[0].shape[1])

        def fill(out: np.ndarray) -> None:
            for i, row in enumerate(rows):
                out[i, : len(row)] = row

        arrays.write_npy(path, shape, np.float32, fill)
        self.values = np.load(path, mmap_mode="r").view(np.ndarray)
        self.bytes = os.stat(path).st_size

    def padded(self, batch: np.ndarray) -> Batch:
        """Return the batch as it is stored."""
        return torch.from_numpy(self.values[batch])


def _npz(row: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, caption_feature=row)
    return out.getvalue()


def captions(count: int, dim: int) -> list[np.ndarray]:
    """Return the embeddings of captions of usual lengths."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(2.75, 0.6, count), 1, PADDED).astype(int)
    return [draw.normal(0, 0.2, (n, dim)).astype(np.float16) for n in lengths]


def batches(count: int) -> Iterator[np.ndarray]:
    """Yield batches of one epoch, shuffled inside blocks of eight batches."""
    draw = np.random.default_rng(1)
    order = np.concatenate([b[draw.permutation(len(b))] for b in np.split(np.arange(count), 8)])
    yield from np.split(order, count // BATCH)


def cpu_seconds(read: Callable[[np.ndarray], object], count: int) -> float:
    """Return the CPU seconds of one epoch."""
    start = time.process_time()
    for batch in batches(count):
        read(batch)
    return time.process_time() - start


def measure(dim: int, count: int, rounds: int) -> None:
    """Print the rows of one width."""
    folder = Path(tempfile.mkdtemp(prefix="imagen-emb-"))
    try:
        rows = captions(count, dim)
        ours, npz, padded = (kind(folder, rows) for kind in (Ours, NpzTar, PaddedFloat))
        reads: dict[str, tuple[Callable, int]] = {
            "ours, padded batch": (ours.padded, ours.bytes),
            "ours, packed tokens": (ours.packed, ours.bytes),
            "npz in an indexed tar, padded batch": (npz.padded, npz.bytes),
            "npz in an indexed tar, packed tokens": (npz.packed, npz.bytes),
            f"padded-{PADDED} float32 map, whole rows": (padded.padded, padded.bytes),
        }
        times: dict[str, list[float]] = {name: [] for name in reads}
        for _ in range(rounds + 1):  # the first one warms up
            for name, (read, _) in reads.items():
                times[name].append(cpu_seconds(read, count))
        base = times["ours, padded batch"][1:]
        for name, (_, size) in reads.items():
            found = times[name][1:]
            ratio = statistics.median(b / a for a, b in zip(found, base, strict=True))
            rate = count / statistics.median(found)
            print(f"| {dim} | {name} | {rate:,.0f} | {ratio:.2f}x | {size / count / 1e3:,.1f} |")
    finally:
        shutil.rmtree(folder)


def main(rounds: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread\n")
    print("| d | format | samples/CPU-s | rate to ours padded | kB a sample |")
    print("|---|---|---|---|---|")
    for dim, count in DIMS.items():
        measure(dim, count, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
