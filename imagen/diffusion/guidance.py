"""Classifier-free guidance and thresholding of the predicted clean image."""

import torch


def guide(cond: torch.Tensor, uncond: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Return uncond + w (cond - uncond); w = 1 is the conditional prediction.

    Ho & Salimans, arXiv:2207.12598, Eq. 6 with their w + 1 as `guidance_scale`, as in Imagen,
    arXiv:2205.11487, Eq. 2.
    """
    return torch.lerp(uncond, cond, guidance_scale)


def dynamic_threshold(x0: torch.Tensor, percentile: float) -> torch.Tensor:
    """Clip each image to its own `percentile` of |x0| (at least 1) and scale back into [-1, 1].

    `x0`: (b, c, h, w); `percentile` in (0, 1]; 1 leaves images within [-1, 1] as they are.
    Imagen, arXiv:2205.11487, Sec. 2.3.
    """
    s = torch.quantile(x0.flatten(1).abs(), percentile, dim=1).clamp(min=1.0)
    s = s[:, None, None, None]
    return x0.clamp(-s, s) / s
