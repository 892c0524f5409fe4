"""What a U-Net is told: time, text, class and the low-resolution image's noise level.

Text enters three ways (Imagen, arXiv:2205.11487, Sec. 2.5 and App. D.3.1): attention-pooled into a
vector that joins the time, as the whole token sequence in cross-attention, and as keys and values
in self-attention.
"""

import torch
from torch import nn
from torch.nn import functional

from imagen.network.conditions import Conditions
from imagen.network.config import UNetConfig
from imagen.network.features import FEATURES
from imagen.network.text import AttentionPool, Resampler, TextTokens


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


class LabelEmbedding(nn.Module):
    """A learned vector for each class, and one more for no class."""

    def __init__(self, num_classes: int, cond_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, cond_dim)

    def forward(self, label: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """`label`: (b,) in [0, num_classes); `keep`: (b,), 0 = no class -> (b, cond_dim)."""
        if keep is not None:
            label = torch.where(keep > 0, label, self.embedding.num_embeddings - 1)
        return self.embedding(label)


class Conditioning(nn.Module):
    """Conditions -> one vector, the text's tokens (or latents) and their attention bias."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        cond_dim, text = config.cond_dim, config.text_dim > 0
        self.time = _mlp(FEATURES, cond_dim)
        self.aug = _mlp(FEATURES, cond_dim) if config.kind == "efficient" else None
        self.tokens = TextTokens(config.text_dim, cond_dim) if text else None
        self.pool = AttentionPool(cond_dim) if text else None
        self.pooled = _mlp(cond_dim, cond_dim) if text else None
        latents = config.text_latents
        self.resampler = Resampler(cond_dim, latents) if latents else None
        self.label = LabelEmbedding(config.num_classes, cond_dim) if config.num_classes else None

    def forward(
        self, given: Conditions
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return cond (b, cond_dim), tokens (b, l', cond_dim), bias (b, l').

        Tokens are None without text; the bias is None when all of them are seen.
        """
        dtype = next(self.parameters()).dtype
        cond = self.time(given.time.to(dtype))
        text, bias, pooled = self._text(given)
        if pooled is not None:
            cond = cond + pooled
        if self.aug is not None:
            assert given.aug is not None, "checked before"
            cond = cond + self.aug(given.aug.to(dtype))
        if self.label is not None:
            assert given.label is not None, "checked before"
            cond = cond + self.label(given.label, given.keep)
        return functional.silu(cond), text, bias

    def _text(
        self, given: Conditions
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return tokens or latents, their bias, and the pooled vector."""
        if self.tokens is None or self.pool is None or self.pooled is None:
            return None, None, None
        assert given.text_emb is not None, "checked before"
        assert given.text_mask is not None, "checked before"
        tokens, bias = self.tokens(given.text_emb, given.text_mask, given.keep)
        pooled = self.pooled(self.pool(tokens, bias))
        if self.resampler is None:
            return tokens, bias, pooled
        return self.resampler(tokens, bias), None, pooled
