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
from train.crops import Crops, Planes

TOKEN_MULTIPLE = 8
"""Text is padded to a multiple of this many tokens: few shapes, no effect on the result."""


SELF_CONDITIONED = 0.5
"""Share of the samples that a self-conditioning member sees its own estimate of (Chen et al.,
arXiv:2208.04202).
"""


CACHE_BYTES = 64 * 2**20
"""Decoded images that a process keeps: small data sets are decoded once, large ones as ever."""


class Microbatch(NamedTuple):
    """One microbatch as it leaves a loader: small types, no padding."""

    pixels: torch.Tensor
    """uint8 (b, c, h, w): pictures, or crops of them."""
    lowres: torch.Tensor | None
    """uint8 (b, c, h, w), for super-resolution members."""
    tokens: torch.Tensor | None
    """float16 (total tokens, d): the captions end to end; None for members without text."""
    lengths: torch.Tensor | None
    """int64 (b,): tokens of each caption."""
    weight: torch.Tensor
    """float32 (b,): 1, or 0 for an image that could not be decoded."""
    eps: torch.Tensor
    t: torch.Tensor
    keep: torch.Tensor
    aug_level: torch.Tensor | None
    aug_eps: torch.Tensor | None
    self_cond: torch.Tensor | None
    """float32 (b,), for self-conditioning members: 1 = sees its own first estimate."""
    bad: tuple[tuple[str, str], ...]
    """(key, reason) of each sample with weight 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What decides the pixels and random draws of a sample, besides its position."""

    seed: int
    shape: tuple[int, int]
    """(height, width) of the whole pictures."""
    previous_shape: tuple[int, int] | None
    """Of their low-resolution pictures, for super-resolution members."""
    channels: int
    caption_drop: float
    crop_px: int = 0
    self_conditioning: bool = False


class Samples(Dataset):
    """Samples of a run by position; `__getitems__` makes a whole microbatch at once."""

    def __init__(
        self, prepared: Prepared, embeddings: EmbeddingSet | None, order: Order, draws: Draws
    ) -> None:
        self.prepared, self.embeddings, self.order, self.draws = prepared, embeddings, order, draws
        self._decoded: dict[tuple[int, int], Planes] = {}
        self._room = CACHE_BYTES
        self.shape, self.lowres_shape = draws.shape, draws.previous_shape
        self._sizes = tuple(shape for shape in (self.shape, self.lowres_shape) if shape is not None)
        self.crops = None
        if draws.crop_px and draws.previous_shape is not None:
            self.crops = Crops(draws.crop_px, draws.shape, draws.previous_shape)
            self.shape, self.lowres_shape = self.crops.shape, self.crops.lowres

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
        if self.crops is not None:
            places = self.crops.places(draws.seed, positions)
            images = [self.crops.cut(*pair) for pair in zip(images, places, strict=True)]
        return Microbatch(
            pixels=torch.from_numpy(np.stack([sizes[0] for sizes in images])),
            weight=torch.tensor([float(i not in bad) for i in range(len(rows))]),
            t=torch.from_numpy(strata(draws.seed, step, self.order.global_batch)[start:stop]),
            bad=tuple(bad.values()),
            eps=self._normals(Purpose.NOISE, positions, self.shape),
            keep=1 - self._happens(Purpose.DROP, positions, draws.caption_drop),
            self_cond=self._self_cond(positions),
            **self._text(shards.tolist(), rows),
            **self._lowres(images, positions),
        )

    def _text(self, shards: list[int], rows: list[int]) -> dict[str, Any]:
        if self.embeddings is None:
            return {"tokens": None, "lengths": None}
        tokens = [self.embeddings.tokens(s, r) for s, r in zip(shards, rows, strict=True)]
        lengths = torch.tensor([len(t) for t in tokens])
        return {"tokens": torch.from_numpy(np.concatenate(tokens)), "lengths": lengths}

    def _images(
        self, shards: list[int], rows: list[int]
    ) -> tuple[list[Planes], dict[int, tuple[str, str]]]:
        """Return the pixels of each sample at each size, and (key, reason) of the bad ones."""
        images: list[Planes] = []
        bad: dict[int, tuple[str, str]] = {}
        for i, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            try:
                images.append(self._decoded.get((shard, row)) or self._decode(shard, row))
            except _UndecodableError as err:
                bad[i] = (self.prepared.key(shard, row), str(err))
                channels = self.draws.channels
                images.append(tuple(np.zeros((channels, *s), np.uint8) for s in self._sizes))
        return images, bad

    def _decode(self, shard: int, row: int) -> Planes:
        encoded = self.prepared.image(shard, row)  # raises when the tar has changed: no bad image
        try:
            planes = decode(encoded, self._sizes, self.draws.channels)
        except ShardError as err:
            raise _UndecodableError(err.message) from None
        self._room -= sum(plane.nbytes for plane in planes)
        if self._room >= 0:
            self._decoded[shard, row] = planes
        return planes

    def _happens(self, purpose: Purpose, positions: Sequence[int], share: float) -> torch.Tensor:
        """Return (b,) float32: 1 with probability `share`, else 0."""
        happens = uniforms(self.draws.seed, purpose, positions) < share
        return torch.from_numpy(happens.astype(np.float32))

    def _self_cond(self, positions: Sequence[int]) -> torch.Tensor | None:
        if not self.draws.self_conditioning:
            return None
        return self._happens(Purpose.SELF_COND, positions, SELF_CONDITIONED)

    def _normals(
        self, purpose: Purpose, positions: Sequence[int], shape: tuple[int, int]
    ) -> torch.Tensor:
        """Return noise (b, c, *shape) float32."""
        full = (self.draws.channels, *shape)
        values = normals(self.draws.seed, purpose, positions, math.prod(full))
        return torch.from_numpy(values).reshape(len(positions), *full)

    def _lowres(self, images: list[Planes], positions: Sequence[int]) -> dict[str, Any]:
        if self.lowres_shape is None:
            return {"lowres": None, "aug_level": None, "aug_eps": None}
        level = uniforms(self.draws.seed, Purpose.AUG_LEVEL, positions)
        return {
            "lowres": torch.from_numpy(np.stack([sizes[1] for sizes in images])),
            "aug_level": torch.from_numpy(level),
            "aug_eps": self._normals(Purpose.AUG_NOISE, positions, self.lowres_shape),
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

    lowres, tokens, lengths = move(part.lowres), move(part.tokens), move(part.lengths)
    return TrainBatch(
        x0=to_x0(part.pixels.to(device, non_blocking=True)),
        eps=part.eps.to(device, non_blocking=True),
        t=part.t.to(device, non_blocking=True),
        text=None if tokens is None or lengths is None else pad(tokens, lengths),
        keep=part.keep.to(device, non_blocking=True),
        lowres=None if lowres is None else to_x0(lowres),
        aug_level=move(part.aug_level),
        aug_eps=move(part.aug_eps),
        self_cond=move(part.self_cond),
    )
