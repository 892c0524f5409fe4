"""Training data: the elastic order joined with images, embeddings and every random draw.

A map-style data set over positions of the run (position = images seen before it) and a batch
sampler that yields the positions of one microbatch. So `num_workers` never changes the order and
resuming is starting the sampler at step k.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imagen.data.embeddings import EmbeddingSet
from imagen.data.images import decode, to_x0
from imagen.data.order import Order, rank_slice
from imagen.data.prepared import Prepared
from imagen.data.randomness import Purpose, normals, strata, uniforms
from imagen.errors import ShardError
from imagen.member import Text, TrainBatch

TOKEN_MULTIPLE = 8
"""Text is padded to a multiple of this many tokens: few shapes, no effect on the result."""


CACHE_BYTES = 64 * 2**20
"""Decoded images that a process keeps: small data sets are decoded once, large ones as ever."""


class Microbatch(NamedTuple):
    """One microbatch as it leaves a loader: small types, no padding."""

    pixels: torch.Tensor
    """uint8 (b, c, S, S)."""
    lowres: torch.Tensor | None
    """uint8 (b, c, s, s), for super-resolution members."""
    tokens: torch.Tensor
    """float16 (total tokens, d): the captions end to end."""
    lengths: torch.Tensor
    """int64 (b,): tokens of each caption."""
    weight: torch.Tensor
    """float32 (b,): 1, or 0 for an image that could not be decoded."""
    eps: torch.Tensor
    t: torch.Tensor
    keep: torch.Tensor
    aug_level: torch.Tensor | None
    aug_eps: torch.Tensor | None
    bad: tuple[tuple[str, str], ...]
    """(key, reason) of each sample with weight 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What decides the pixels and random draws of a sample, besides its position."""

    seed: int
    size: int
    previous_size: int | None
    channels: int
    caption_drop: float


class Samples(Dataset):
    """Samples of a run by position; `__getitems__` makes a whole microbatch at once."""

    def __init__(
        self, prepared: Prepared, embeddings: EmbeddingSet, order: Order, draws: Draws
    ) -> None:
        self.prepared, self.embeddings, self.order, self.draws = prepared, embeddings, order, draws
        self._decoded: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}
        self._room = CACHE_BYTES

    def __getitems__(self, positions: Sequence[int]) -> Microbatch:
        """Return the samples at consecutive positions of one global batch."""
        step, start = divmod(positions[0], self.order.global_batch)
        stop = start + len(positions)
        shards, at = self.order.part(step, start, stop)
        rows = [
            int(self.prepared.rows(s, "train")[a])
            for s, a in zip(shards.tolist(), at.tolist(), strict=True)
        ]
        draws = self.draws
        images, bad = self._images(shards.tolist(), rows)
        tokens = [self.embeddings.tokens(s, r) for s, r in zip(shards.tolist(), rows, strict=True)]
        times = strata(draws.seed, step, self.order.global_batch)[start:stop]
        keep = uniforms(draws.seed, Purpose.DROP, positions) >= draws.caption_drop
        return Microbatch(
            pixels=torch.from_numpy(np.stack([sizes[0] for sizes in images])),
            tokens=torch.from_numpy(np.concatenate(tokens)),
            lengths=torch.tensor([len(t) for t in tokens]),
            weight=torch.tensor([float(i not in bad) for i in range(len(rows))]),
            t=torch.from_numpy(times),
            bad=tuple(bad.values()),
            eps=self._normals(Purpose.NOISE, positions, draws.size),
            keep=torch.from_numpy(keep.astype(np.float32)),
            **self._lowres(images, positions),
        )

    def _images(
        self, shards: list[int], rows: list[int]
    ) -> tuple[list[tuple[np.ndarray, ...]], dict[int, tuple[str, str]]]:
        """Return the pixels of each sample at each size, and (key, reason) of the bad ones."""
        sizes = tuple(s for s in (self.draws.size, self.draws.previous_size) if s is not None)
        images: list[tuple[np.ndarray, ...]] = []
        bad: dict[int, tuple[str, str]] = {}
        for i, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            try:
                images.append(self._decoded.get((shard, row)) or self._decode(shard, row, sizes))
            except _UndecodableError as err:
                bad[i] = (self.prepared.key(shard, row), str(err))
                images.append(tuple(np.zeros((self.draws.channels, s, s), np.uint8) for s in sizes))
        return images, bad

    def _decode(self, shard: int, row: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        encoded = self.prepared.image(shard, row)  # raises when the tar has changed: no bad image
        try:
            planes = decode(encoded, sizes, self.draws.channels)
        except ShardError as err:
            raise _UndecodableError(err.message) from None
        self._room -= sum(plane.nbytes for plane in planes)
        if self._room >= 0:
            self._decoded[shard, row] = planes
        return planes

    def _normals(self, purpose: Purpose, positions: Sequence[int], size: int) -> torch.Tensor:
        """Return noise (b, c, size, size) float32."""
        shape = (self.draws.channels, size, size)
        values = normals(self.draws.seed, purpose, positions, math.prod(shape))
        return torch.from_numpy(values).reshape(len(positions), *shape)

    def _lowres(
        self, images: list[tuple[np.ndarray, ...]], positions: Sequence[int]
    ) -> dict[str, Any]:
        size = self.draws.previous_size
        if size is None:
            return {"lowres": None, "aug_level": None, "aug_eps": None}
        level = uniforms(self.draws.seed, Purpose.AUG_LEVEL, positions)
        return {
            "lowres": torch.from_numpy(np.stack([sizes[1] for sizes in images])),
            "aug_level": torch.from_numpy(level),
            "aug_eps": self._normals(Purpose.AUG_NOISE, positions, size),
        }


class _UndecodableError(Exception):
    """An image whose bytes are as they were indexed, and are no image."""


def shares(global_batch: int, microbatch: int, rank: int, world_size: int) -> list[range]:
    """Return the microbatches of a rank: even cuts of its contiguous share of a global batch."""
    start, stop = rank_slice(global_batch, rank, world_size)
    parts = -(-(stop - start) // microbatch)
    cuts = [rank_slice(stop - start, i, parts) for i in range(parts)]
    return [range(start + a, start + b) for a, b in cuts]


class Positions(Sampler[list[int]]):
    """Yields the positions of each microbatch of one rank, from step `first` to `steps`."""

    def __init__(self, parts: list[range], global_batch: int, first: int, steps: int) -> None:
        self.parts, self.global_batch, self.first, self.steps = parts, global_batch, first, steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            offset = step * self.global_batch
            for part in self.parts:
                yield [offset + j for j in part]


def loader(samples: Samples, positions: Positions, workers: int, pin: bool) -> DataLoader:
    """Return a loader of microbatches, in order whatever the number of workers."""
    return DataLoader(
        samples,
        batch_sampler=positions,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="spawn" if workers else None,  # forking a Ray worker may deadlock
    )


def _as_is(batch: Any) -> Any:
    return batch


def pad(tokens: torch.Tensor, lengths: torch.Tensor) -> Text:
    """Return packed tokens (total, d) as padded text: embeddings (b, l, d) float32 and mask."""
    longest = int(lengths.max())
    width = -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    mask = torch.arange(width, device=tokens.device) < lengths[:, None]
    emb = torch.zeros(*mask.shape, tokens.shape[1], device=tokens.device)
    emb[mask] = tokens.float()
    return Text(emb, mask)


def to_device(part: Microbatch, device: torch.device) -> TrainBatch:
    """Return what the loss takes, on `device`: pixels scaled, text padded."""

    def move(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.to(device, non_blocking=True)

    lowres = move(part.lowres)
    return TrainBatch(
        x0=to_x0(part.pixels.to(device, non_blocking=True)),
        eps=part.eps.to(device, non_blocking=True),
        t=part.t.to(device, non_blocking=True),
        text=pad(part.tokens.to(device, non_blocking=True), part.lengths.to(device)),
        keep=part.keep.to(device, non_blocking=True),
        lowres=None if lowres is None else to_x0(lowres),
        aug_level=move(part.aug_level),
        aug_eps=move(part.aug_eps),
    )
