"""Losses of a snapshot on held-out samples: a pure function of snapshot, data set and seed.

All snapshots of a run see the same samples with the same noise at the same times, one stratum each,
so what differs between them is the weights. Pictures are whole and as they are, neither mirrored
nor, mostly, cropped; captions are all there, or all left out, or each sample has another one's: the
differences tell how much the text is used. Everything is computed in float32. Members that are
trained on crops (`crop_px`) are validated on the crop in the middle: whole pictures are what their
memory is too small for.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imagen.data.images import to_x0
from imagen.data.order import permutation
from imagen.data.randomness import normals, uniforms
from imagen.data.samples import Bad
from imagen.diffusion.schedule import train_logsnr
from imagen.member import MemberConfig, TrainBatch, loss
from train.crops import Crops
from train.data import SELF_CONDITIONED, pad
from train.heldout import HeldOut, Sample

VERSION = 2
"""Raise it when the numbers change: results of another version are made again."""
EDGES = tuple(np.arange(-10.0, 10.1, 2.5).tolist())
"""Between the bins of log-SNR; the first and the last one are open."""

Float64 = npt.NDArray[np.float64]


class Draw(IntEnum):
    """Purposes of the draws, beside those of training: held-out samples never share one with it."""

    NOISE = 81
    TIME = 82
    TIME_ORDER = 83
    AUG_LEVEL = 84
    AUG_NOISE = 85
    SELF_COND = 86
    OTHER_CAPTION = 87


@dataclass(frozen=True, slots=True)
class Course:
    """The samples in the form that the loss takes them: every draw made."""

    heldout: HeldOut
    member: MemberConfig
    seed: int
    count: int
    """How many samples, the first of the chosen ones."""
    crop_px: int
    batch: int
    """Images of a forward pass; the losses do not depend on it."""

    def batches(self, bad: Counter[str]) -> Iterator[tuple[TrainBatch, TrainBatch | None]]:
        """Yield the samples batch by batch, and the same with other samples' captions.

        None where there are no captions, or only one; `bad` counts samples left out, by reason.
        """
        for start in range(0, self.count, self.batch):
            numbers = range(start, min(start + self.batch, self.count))
            found = [self.heldout.read(number) for number in numbers]
            bad.update(sample.reason for sample in found if isinstance(sample, Bad))
            samples = [sample for sample in found if isinstance(sample, Sample)]
            if samples:
                batch = self._batch(samples)
                yield batch, self._shuffled(batch, samples)

    def _shuffled(self, batch: TrainBatch, samples: list[Sample]) -> TrainBatch | None:
        """Return a batch in which each sample has the caption of another one.

        All samples stand in one circle, each takes the caption of the next. Where that says the
        same, the difference to the loss with the right captions is smaller than it should be.
        """
        tokens = self.heldout.tokens
        if tokens is None or self.count < 2:
            return None
        circle = permutation(self.count, self.seed, Draw.OTHER_CAPTION)
        following = dict(zip(circle.tolist(), np.roll(circle, -1).tolist(), strict=True))
        places = [self.heldout.places[following[sample.number]] for sample in samples]
        return replace(batch, text=_padded([tokens(*place) for place in places]))

    def _batch(self, samples: list[Sample]) -> TrainBatch:
        numbers = [sample.number for sample in samples]
        planes = [self._middle(sample) for sample in samples]
        sizes = [np.stack(size) for size in zip(*planes, strict=True)]
        x0, *lowres = (to_x0(torch.from_numpy(size)) for size in sizes)
        small = lowres[0] if lowres else None
        return TrainBatch(
            x0=x0,
            eps=self._noise(Draw.NOISE, numbers, x0),
            t=torch.from_numpy(self._times()[numbers]),
            text=_text(samples),
            keep=torch.ones(len(samples)),
            lowres=small,
            aug_level=None if small is None else self._uniforms(Draw.AUG_LEVEL, numbers),
            aug_eps=None if small is None else self._noise(Draw.AUG_NOISE, numbers, small),
            self_cond=self._self_cond(numbers),
        )

    def _middle(self, sample: Sample) -> tuple[npt.NDArray[np.uint8], ...]:
        """Return the pictures of a sample, or the crops in their middle."""
        if not self.crop_px:
            return sample.planes
        full, small = self.heldout.sizes
        crops = Crops(self.crop_px, full, small)
        y, x = ((side - self.crop_px) // crops.unit[0] // 2 for side in full)
        return crops.cut(sample.planes, (y, x))

    def _times(self) -> Float64:
        """Return the time of each sample: one in each of as many equal strata as there are."""
        inside = uniforms(self.seed, Draw.TIME, np.arange(self.count))
        strata = permutation(self.count, self.seed, Draw.TIME_ORDER)
        return np.minimum((strata + inside) / self.count + 2.0**-54, 1 - 2.0**-53)

    def _uniforms(self, purpose: Draw, numbers: list[int]) -> torch.Tensor:
        return torch.from_numpy(uniforms(self.seed, purpose, numbers))

    def _noise(self, purpose: Draw, numbers: list[int], like: torch.Tensor) -> torch.Tensor:
        drawn = normals(self.seed, purpose, numbers, like[0].numel())
        return torch.from_numpy(drawn).reshape(like.shape)

    def _self_cond(self, numbers: list[int]) -> torch.Tensor | None:
        if not self.member.network.self_conditioning:
            return None
        return (self._uniforms(Draw.SELF_COND, numbers) < SELF_CONDITIONED).float()


def _text(samples: list[Sample]) -> Any:
    rows = [sample.tokens for sample in samples if sample.tokens is not None]
    return _padded(rows) if rows else None


def _padded(rows: list[npt.NDArray[np.float16]]) -> Any:
    return pad(torch.from_numpy(np.concatenate(rows)), torch.tensor([len(row) for row in rows]))


@dataclass(frozen=True, slots=True)
class Losses:
    """Loss of each sample that could be used, in order, by one set of weights."""

    logsnr: Float64
    captioned: Float64
    """As the member is sampled: with the caption, if it takes any."""
    without: Float64 | None
    """With all captions left out; None for members without text."""
    shuffled: Float64 | None
    """With the caption of another sample; None for members without text, or a single sample."""
    bad: dict[str, int]
    """Samples left out, by reason."""


@torch.no_grad()
def losses(net: nn.Module, course: Course) -> Losses:
    """Return the losses of a network, which is in eval mode."""
    bad, rows, device = Counter[str](), [], next(net.parameters()).device
    for batch, shuffled in course.batches(bad):
        moved = _moved(batch, device)
        row = [train_logsnr(course.member.diffusion, batch.t), loss(net, course.member, moved)]
        if batch.text is not None:
            row.append(loss(net, course.member, _moved(batch, device, keep=0.0)))
        if shuffled is not None:
            row.append(loss(net, course.member, _moved(shuffled, device)))
        rows.append([values.double().cpu().numpy() for values in row])
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)] or [np.zeros(0)] * 2
    captioned, *others = columns[1:]
    without, shuffled_captions = [*others, None, None][:2]
    return Losses(columns[0], captioned, without, shuffled_captions, dict(bad))


def _moved(batch: TrainBatch, device: torch.device, keep: float = 1.0) -> TrainBatch:
    """Return a batch on a device, all captions seen or dropped."""

    def move(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.to(device)

    text = batch.text
    return TrainBatch(
        x0=batch.x0.to(device),
        eps=batch.eps.to(device),
        t=batch.t.to(device),
        text=None if text is None else type(text)(text.emb.to(device), text.mask.to(device)),
        keep=(batch.keep * keep).to(device),
        lowres=move(batch.lowres),
        aug_level=move(batch.aug_level),
        aug_eps=move(batch.aug_eps),
        self_cond=move(batch.self_cond),
    )


def summary(found: Losses) -> dict[str, Any]:
    """Return what a result says of one set of weights: means, standard errors, counts."""
    found = _by_noise(found)
    told: dict[str, Any] = {
        "loss": mean(found.captioned),
        "bins": bins(found.logsnr, found.captioned),
    }
    if found.without is not None:
        told["without_captions"] = mean(found.without)
        told["bins_without_captions"] = bins(found.logsnr, found.without)
        told["caption_gap"] = mean(found.without - found.captioned)  # of pairs: a small error
    if found.shuffled is not None:
        told["shuffled_captions"] = mean(found.shuffled)
        told["bins_shuffled_captions"] = bins(found.logsnr, found.shuffled)
        told["shuffle_gap"] = mean(found.shuffled - found.captioned)
    return told


def _by_noise(found: Losses) -> Losses:
    """Return the same losses in the order of log-SNR, which that of the strata is."""
    order = np.argsort(found.logsnr, kind="stable")
    others = (found.without, found.shuffled)
    without, shuffled = (None if part is None else part[order] for part in others)
    return Losses(found.logsnr[order], found.captioned[order], without, shuffled, found.bad)


def mean(values: Float64) -> dict[str, Any]:
    """Return mean, standard error of the mean and count; None where there are too few for it.

    `values` are in the order of log-SNR, one of each stratum: how the loss depends on the noise is
    no error of the mean. So the variance is that of successive differences (von Neumann, Kent,
    Bellinson & Hart 1941, Ann. Math. Stat. 12:153; Wolter 1984, JASA 79:781, for ordered strata).
    """
    count = len(values)
    error = None
    if count > 1:
        squares = float((np.diff(values) ** 2).sum())
        error = (squares / 2 * count / (count - 1)) ** 0.5 / count
    return {"mean": _short(values.mean() if count else None), "sem": _short(error), "count": count}


def _short(value: Any) -> float | None:
    """Return a number of 7 digits: what is not noise of the order of float32 sums."""
    return float(f"{value:.7g}") if value is not None and np.isfinite(value) else None


def bins(logsnr: Float64, values: Float64) -> list[dict[str, Any]]:
    """Return mean, error and count by log-SNR, low (noisy) to high, empty bins left out.

    Values are in the order of log-SNR.
    """
    at = np.digitize(logsnr, EDGES)
    borders = list(pairwise((None, *EDGES, None)))
    filled = [(borders[i], values[at == i]) for i in range(len(borders)) if (at == i).any()]
    return [{"logsnr": list(border), **mean(part)} for border, part in filled]
