"""What a U-Net is told: time, text and the low-resolution image's noise level.

Text enters three ways (Imagen, arXiv:2205.11487, Sec. 2.5): attention-pooled into a
vector that joins the time, as the whole token sequence in cross-attention, and as keys and values
in self-attention. No text is one learned null token, which is also always a valid key.
"""

import torch
from torch import nn
from torch.nn import functional

from imagen.network.blocks import MASKED, attend
from imagen.network.features import FEATURES


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


class TextTokens(nn.Module):
    """LayerNorm and project the encoder's tokens; put the null token before them."""

    def __init__(self, text_dim: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_dim)
        self.project = nn.Linear(text_dim, cond_dim)
        self.null = nn.Parameter(torch.randn(1, 1, cond_dim))

    def forward(
        self, text_emb: torch.Tensor, text_mask: torch.Tensor, keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (b, 1 + l, cond_dim) and their additive attention bias (b, 1 + l).

        `text_emb`: (b, l, text_dim); `text_mask`: (b, l), True = token; `keep`: (b,), 0 = no text.
        """
        seen = text_mask.to(text_emb.dtype) * keep.to(text_emb.dtype)[:, None]
        tokens = self.project(self.norm(text_emb)) * seen[:, :, None]
        null = self.null.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        bias = functional.pad((1 - seen) * MASKED, (1, 0))
        return torch.cat([null, tokens], dim=1), bias


def pool_heads(cond_dim: int) -> int:
    """Return the heads of the pooling attention, of about 64 channels each."""
    return max(1, cond_dim // 64)


class AttentionPool(nn.Module):
    """Pool a token sequence into one vector with a learned query."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.heads = pool_heads(cond_dim)
        self.norm = nn.LayerNorm(cond_dim)
        self.query = nn.Parameter(torch.randn(1, 1, cond_dim))
        self.kv = nn.Linear(cond_dim, 2 * cond_dim)

    def forward(self, tokens: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`tokens`: (b, l, cond_dim); `bias`: (b, l) -> (b, cond_dim)."""
        k, v = self.kv(self.norm(tokens)).chunk(2, dim=-1)
        query = self.query.expand(tokens.shape[0], -1, -1).to(k.dtype)
        return attend(query, k, v, bias, self.heads)[:, 0]


class Conditioning(nn.Module):
    """Time, text and augmentation level -> one vector, the text tokens and their mask."""

    def __init__(self, text_dim: int, cond_dim: int, lowres: bool) -> None:
        super().__init__()
        self.time = _mlp(FEATURES, cond_dim)
        self.aug = _mlp(FEATURES, cond_dim) if lowres else None
        self.tokens = TextTokens(text_dim, cond_dim)
        self.pool = AttentionPool(cond_dim)
        self.pooled = _mlp(cond_dim, cond_dim)

    def forward(
        self,
        time: torch.Tensor,
        text_emb: torch.Tensor,
        text_mask: torch.Tensor,
        keep: torch.Tensor,
        aug: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return cond (b, cond_dim), tokens (b, 1 + l, cond_dim), bias (b, 1 + l)."""
        tokens, bias = self.tokens(text_emb, text_mask, keep)
        cond = self.time(time) + self.pooled(self.pool(tokens, bias))
        if self.aug is not None:
            assert aug is not None, "an SR member is told its augmentation level"
            cond = cond + self.aug(aug)
        return functional.silu(cond), tokens, bias
