"""What a network receives, made by the same functions in training and in sampling.

A super-resolution member is conditioned by noise at low resolution, then bilinear upsampling
(Imagen, arXiv:2205.11487, Sec. 2.4 and its pseudo-code).
"""

import torch
from torch.nn import functional

from imagen.batch import Text, present
from imagen.diffusion.prediction import diffuse
from imagen.diffusion.schedule import alpha_sigma, cosine_logsnr
from imagen.network.features import sinusoids

LOGSNR_LEAST, LOGSNR_MOST = -15.0, 20.0
"""Features of log-SNR beyond these are those of the limit: also a terminal SNR of 0 has some.

The least is where the cosine schedule ends without zero terminal SNR, signal 0.0006: training sees
levels beyond it so rarely that features of their own would hardly be trained.
"""


def features(logsnr: torch.Tensor) -> torch.Tensor:
    """Return the features (b, f) float32 of log-SNR (b,), which may be infinite.

    They are made where `logsnr` lies: sampling has it on the host, training where its batch is, for
    in float64, rounded once, a GPU's differ in no more than a last bit now and then.
    """
    return sinusoids(logsnr.clamp(LOGSNR_LEAST, LOGSNR_MOST))


def per_image(value: torch.Tensor) -> torch.Tensor:
    """Return a number for each image (b,) as (b, 1, 1, 1) float32."""
    return value.float()[:, None, None, None]


def condition_lowres(
    lowres: torch.Tensor, aug_level: torch.Tensor, aug_eps: torch.Tensor, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what an SR network sees: the noised, upsampled image (b, c, h, w) and features (b, f).

    `lowres`, `aug_eps`: (b, c, s, s); `aug_level`: (b,) in [0, 1], a time of the cosine schedule,
    on their device or on the host; `shape`: (h, w).
    """
    logsnr = cosine_logsnr(aug_level)
    alpha, sigma = (per_image(z).to(lowres.device) for z in alpha_sigma(logsnr))
    noised = diffuse(lowres, aug_eps, alpha, sigma)
    up = functional.interpolate(noised, shape, mode="bilinear", align_corners=False)
    return up, features(logsnr).to(lowres.device)


def text_inputs(
    text: Text | None, keep: torch.Tensor, label: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """Return the fields of `Conditions` that say which text and label each row sees.

    `keep`: (b,) 1 = seen, 0 = dropped. An empty caption has no token that is seen; where there is
    no label beside it, its row is one that drops all (`keep` = 0).
    """
    if text is None:
        return {"keep": keep, "label": label}
    there = present(text)
    return {
        "text_emb": text.emb,
        "text_mask": text.mask & (there > 0)[:, None],
        "keep": keep * there if label is None else keep,
        "label": label,
    }
