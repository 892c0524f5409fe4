"""The picture of a snapshot: what it draws of held-out captions, beside the real pictures.

All snapshots of a run draw the same captions from the same noise, so that their pictures can be
held side by side. A super-resolution member starts from the real picture, made small: its picture
shows this member alone, whatever the one before it draws.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imagen import picture
from imagen.batch import Given, Text
from imagen.data.images import to_uint8, to_x0
from imagen.member import MemberConfig
from imagen.picture import GridStyle
from imagen.sampling import draw, noised_lowres
from imagen.text.batch import batch as text_batch
from train.heldout import HeldOut, Sample

SEEDS = (0, 1, 2)
"""Sampling seeds: each caption is drawn from the same noise. A super-resolution member has one."""
BATCH = 4
"""Images that are drawn at a time; the pictures do not depend on it."""
LABEL_CHARS = 200

Image = npt.NDArray[np.uint8]


def shown(heldout: HeldOut, count: int) -> list[Sample]:
    """Return the first `count` held-out samples that can be used."""
    numbers = range(len(heldout.places))
    usable = (s for s in map(heldout.read, numbers) if isinstance(s, Sample))
    return list(itertools.islice(usable, count))


@torch.inference_mode()
def grid(
    net: nn.Module, member: MemberConfig, index: int, heldout: HeldOut, samples: list[Sample]
) -> bytes:
    """Return the labelled grid of samples as a PNG; a row for each.

    `net`: in eval mode, on its device; `index`: the member's number in its cascade.
    """
    seeds = SEEDS if len(heldout.sizes) == 1 else SEEDS[:1]
    wanted = [(sample, seed) for sample in samples for seed in seeds]
    drawn = list(_drawn(net, member, index, wanted))
    rows, labels = [], []
    for i, sample in enumerate(samples):
        real, *lowres = (_pixels(plane) for plane in sample.planes)
        rows.append([*lowres, *drawn[i * len(seeds) : (i + 1) * len(seeds)], real])
        labels.append(heldout.caption(sample.number)[:LABEL_CHARS])
    heads = ["from"] if len(heldout.sizes) == 2 else []
    heads += [f"seed {seed}" for seed in seeds]
    style = GridStyle(group=len(heads))
    return picture.png(picture.grid(rows, labels, [*heads, "real"], style))


def _drawn(
    net: nn.Module, member: MemberConfig, index: int, wanted: list[tuple[Sample, int]]
) -> Iterator[Image]:
    device = next(net.parameters()).device
    for start in range(0, len(wanted), BATCH):
        samples, seeds = zip(*wanted[start : start + BATCH], strict=True)
        given = _given(member, index, samples, seeds, device)
        images = draw(net, member, index, given, seeds, lambda _: None)
        yield from map(_pixels, to_uint8(images).cpu().numpy())


def _given(
    member: MemberConfig,
    index: int,
    samples: Sequence[Sample],
    seeds: Sequence[int],
    device: torch.device,
) -> Given:
    """Return what the images of samples are conditioned on."""
    up = aug = text = None
    if len(samples[0].planes) == 2:
        small = to_x0(torch.from_numpy(np.stack([sample.planes[1] for sample in samples])))
        up, aug = noised_lowres(member, index, small.to(device), seeds)
    rows = [sample.tokens for sample in samples if sample.tokens is not None]
    if rows:
        emb, mask = text_batch(rows)
        text = Text(emb.to(device), mask.to(device))
    return Given(text=text, lowres=up, aug=aug)


def _pixels(plane: npt.NDArray[np.uint8]) -> Image:
    """Return (c, h, w) as (h, w, c)."""
    return plane.transpose(1, 2, 0)
