"""What a U-Net is told beside the noisy image, in one value."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a U-Net is told beside x."""

    time: Tensor
    """(b, f) float32 features of log-SNR."""
    text_emb: Tensor | None = None
    """(b, l, d) embeddings of the text's tokens."""
    text_mask: Tensor | None = None
    """(b, l) bool, True = token."""
    keep: Tensor | None = None
    """(b,) 1 = text and label are seen, 0 = dropped; None = all are seen."""
    lowres: Tensor | None = None
    """(b, c, h, w) noised low-resolution image, upsampled; for `efficient` only."""
    aug: Tensor | None = None
    """(b, f) features of the noise level of `lowres`."""
    x0_previous: Tensor | None = None
    """(b, c, h, w) previous estimate of x0, for self-conditioning; None = zeros."""
    image: Tensor | None = None
    """(b, image_channels, H, W) conditioning image of any size."""
    label: Tensor | None = None
    """(b,) int64 class in [0, num_classes); dropped by keep = 0."""
