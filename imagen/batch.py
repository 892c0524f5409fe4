"""What a member is given: text, a training batch, what sampling conditions on."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Text:
    """Text of a batch: embeddings (b, l, d) and mask (b, l), True = token."""

    emb: torch.Tensor
    mask: torch.Tensor


def present(text: Text) -> torch.Tensor:
    """Return (b,) float32: 0 where a caption is empty, only its end of sequence; else 1.

    An empty caption is the null text, in training and in sampling alike.
    """
    return (text.mask.sum(dim=1) > 1).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One microbatch with every random draw made: the loss is a pure function of it."""

    x0: torch.Tensor
    """Clean images (b, c, h, w) in [-1, 1]; their size counts, so they may be crops."""
    eps: torch.Tensor
    """Noise, as `x0`."""
    t: torch.Tensor
    """Times (b,) float64 in (0, 1), uniform: `DiffusionConfig.times` is applied by the loss."""
    text: Text | None
    """Text of each image; None for a network without text."""
    keep: torch.Tensor
    """(b,) float: 1 = text and label are seen, 0 = dropped."""
    lowres: torch.Tensor | None = None
    """Low-resolution images (b, c, s, s) in [-1, 1], at the size of the member before."""
    aug_level: torch.Tensor | None = None
    """Augmentation level (b,) float64 in [0, 1]."""
    aug_eps: torch.Tensor | None = None
    """Augmentation noise (b, c, s, s), as `lowres`."""
    label: torch.Tensor | None = None
    """Class of each image (b,) int64, for a network with classes."""
    image: torch.Tensor | None = None
    """Conditioning image (b, image_channels, H, W) in [-1, 1], of any size."""
    self_cond: torch.Tensor | None = None
    """(b,) float: 1 = the network sees its own first estimate; for self-conditioning networks."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the images of a trajectory are conditioned on, one row an image."""

    text: Text | None = None
    """What to draw; None for a network without text."""
    negative: Text | None = None
    """What guidance leads away from, in place of the null text."""
    lowres: torch.Tensor | None = None
    """Noised and upsampled image (b, c, h, w), from `condition_lowres`; for SR members."""
    aug: torch.Tensor | None = None
    """Features (b, f) of its noise level, from `condition_lowres`."""
    label: torch.Tensor | None = None
    """Class (b,) int64, for a network with classes."""
    image: torch.Tensor | None = None
    """Conditioning image (b, image_channels, H, W) in [-1, 1], of any size."""
