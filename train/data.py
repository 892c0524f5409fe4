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
from imagen.data.images import TooSmallError, decode, decode_into, to_x0
from imagen.data.order import Order, rank_slice
from imagen.data.prepared import Prepared
from imagen.data.randomness import Purpose, normals, strata, uniforms
from imagen.data.samples import Bad
from imagen.errors import ShardError
from imagen.member import Text, TrainBatch
from train.crops import Crops, Place, Planes

TOKEN_MULTIPLE = 8
"""Text is padded to a multiple of this many tokens: few shapes, no effect on the result."""
SELF_CONDITIONED = 0.5
"""Share of the samples that a self-conditioning member sees its own estimate of (Chen et al.,
arXiv:2208.04202).
"""

CACHE_BYTES = 64 * 2**20
"""Decoded images that a process keeps: small data sets are decoded once, large ones as ever."""

LOADER_AHEAD = 2
"""Microbatches that each loading process makes ahead."""


class Microbatch(NamedTuple):
    """One microbatch as it leaves a loader: small types, no padding."""

    pixels: torch.Tensor
    """uint8 (b, c, h, w): pictures, or crops of them; channels last in memory, as decoded."""
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
    bad: tuple[Bad, ...]
    """The samples with weight 0: `unreadable` or `too_small`, and what the decoder says."""
    keys: tuple[str, ...]
    """Which samples these are; none in a filler (see `shares`)."""


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
    flip: float = 0.0
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
        """Return the samples at consecutive positions of one global batch.

        Negative ones, `~position`, make a filler: the same samples without weight.
        """
        if positions[0] < 0:
            return _filler(self.__getitems__([~position for position in positions]))
        step, start = divmod(positions[0], self.order.global_batch)
        stop = start + len(positions)
        shards, at = self.order.part(step, start, stop)
        splits = (self.prepared.rows(shard, "train") for shard in shards.tolist())
        rows = [int(split[a]) for split, a in zip(splits, at.tolist(), strict=True)]
        samples = list(zip(shards.tolist(), rows, strict=True))
        draws = self.draws
        images, bad = self._images(samples, positions)
        return Microbatch(
            pixels=images[0],
            weight=torch.tensor([float(i not in bad) for i in range(len(rows))]),
            t=torch.from_numpy(strata(draws.seed, step, self.order.global_batch)[start:stop]),
            bad=tuple(bad.values()),
            keys=tuple(self.prepared.key(*sample) for sample in samples),
            eps=self._normals(Purpose.NOISE, positions, self.shape),
            keep=1 - self._happens(Purpose.DROP, positions, draws.caption_drop),
            self_cond=self._self_cond(positions),
            **self._text(samples),
            **self._lowres(images[1:], positions),
        )

    def _text(self, at: list[tuple[int, int]]) -> dict[str, Any]:
        if self.embeddings is None:
            return {"tokens": None, "lengths": None}
        tokens = [self.embeddings.tokens(*sample) for sample in at]
        lengths = torch.tensor([len(t) for t in tokens])
        return {"tokens": torch.from_numpy(np.concatenate(tokens)), "lengths": lengths}

    def _images(
        self, at: list[tuple[int, int]], positions: Sequence[int]
    ) -> tuple[list[torch.Tensor], dict[int, Bad]]:
        """Return the pictures of each size as they are shown, black where bad, and the bad ones.

        Each is laid into its batch at once: fresh memory costs as much as copying.
        """
        draws, bad = self.draws, dict[int, Bad]()
        flips = [0.0] * len(at)
        if draws.flip:
            flips = self._happens(Purpose.FLIP, positions, draws.flip).tolist()
        places = self.crops.places(draws.seed, positions) if self.crops is not None else []
        shapes = [shape for shape in (self.shape, self.lowres_shape) if shape is not None]
        batches = [np.empty((len(at), *shape, draws.channels), np.uint8) for shape in shapes]
        for i, sample in enumerate(at):
            outs = [batch[i] for batch in batches]
            try:
                self._show(sample, outs, bool(flips[i]), places[i] if places else None)
            except _UndecodableError as err:
                bad[i] = Bad(self.prepared.key(*sample), *err.args)
                for out in outs:
                    out[...] = 0
        return [torch.from_numpy(batch).permute(0, 3, 1, 2) for batch in batches], bad

    def _show(
        self, sample: tuple[int, int], outs: list[np.ndarray], flip: bool, place: Place | None
    ) -> None:
        """Lay a picture into `outs`, (h, w, c) for each size: mirrored or not, whole or a crop."""
        planes = self._decoded.get(sample)
        if planes is None:
            encoded = self.prepared.image(*sample)  # raises when the tar changed: no bad image
            if self.crops is None and len(outs) == 1 and decode_into(encoded, outs[0]):
                self._remember(sample, (outs[0].transpose(2, 0, 1),))
                if flip:
                    outs[0][...] = outs[0][:, ::-1].copy()
                return
            planes = self._decode(encoded)
            self._remember(sample, planes)
        if flip:
            planes = tuple(plane[..., ::-1] for plane in planes)
        if self.crops is not None and place is not None:
            planes = self.crops.cut(planes, place)
        for out, plane in zip(outs, planes, strict=True):
            out[...] = plane.transpose(1, 2, 0)

    def _decode(self, encoded: bytes) -> Planes:
        try:
            return decode(encoded, self._sizes, self.draws.channels)
        except ShardError as err:
            reason = "too_small" if isinstance(err, TooSmallError) else "unreadable"
            raise _UndecodableError(reason, err.message) from None

    def _remember(self, sample: tuple[int, int], planes: Planes) -> None:
        """Keep the pixels of small data sets."""
        size = sum(plane.nbytes for plane in planes)
        if size <= self._room:
            self._room -= size
            self._decoded[sample] = tuple(plane.copy() for plane in planes)

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

    def _lowres(self, images: list[torch.Tensor], positions: Sequence[int]) -> dict[str, Any]:
        if self.lowres_shape is None:
            return {"lowres": None, "aug_level": None, "aug_eps": None}
        level = uniforms(self.draws.seed, Purpose.AUG_LEVEL, positions)
        return {
            "lowres": images[0],
            "aug_level": torch.from_numpy(level),
            "aug_eps": self._normals(Purpose.AUG_NOISE, positions, self.lowres_shape),
        }


class _UndecodableError(Exception):
    """An image whose bytes are as they were indexed, and cannot be used: (reason, detail)."""


def _filler(part: Microbatch) -> Microbatch:
    """Return a microbatch that counts for nothing."""
    return part._replace(weight=torch.zeros_like(part.weight), bad=(), keys=())


def shares(global_batch: int, microbatch: int, rank: int, world_size: int) -> list[range]:
    """Return the microbatches of a rank: even cuts of its contiguous share of a global batch.

    All ranks make the same number of passes, as FSDP needs: some are one image smaller. With
    `microbatch` 1 that may leave a rank one empty range: its pass is a filler.
    """
    start, stop = rank_slice(global_batch, rank, world_size)
    parts = math.ceil(math.ceil(global_batch / world_size) / microbatch)
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
                yield [offset + j for j in part] or [~(offset + part.start)]


def loader(samples: Dataset, positions: Positions, workers: int, pin: bool) -> DataLoader:
    """Return a loader of microbatches, in order whatever the number of workers."""
    return DataLoader(
        samples,
        batch_sampler=positions,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=LOADER_AHEAD if workers else None,
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
        x0=to_x0(part.pixels.to(device, non_blocking=True).contiguous()),
        eps=part.eps.to(device, non_blocking=True),
        t=part.t.to(device, non_blocking=True),
        text=None if tokens is None or lengths is None else pad(tokens, lengths),
        keep=part.keep.to(device, non_blocking=True),
        lowres=None if lowres is None else to_x0(lowres.contiguous()),
        aug_level=move(part.aug_level),
        aug_eps=move(part.aug_eps),
        self_cond=move(part.self_cond),
    )
