"""The text as a U-Net sees it: projected tokens, their pooled vector, and resampled latents.

No text is one learned null token, which is also always a valid key.
"""

import torch
from torch import nn
from torch.nn import functional

from imagen.network.attention import MASKED, attend
from imagen.network.blocks import zero_init
from imagen.network.config import pool_heads

RESAMPLER_DEPTH = 2
"""Layers of the Perceiver resampler."""


class TextTokens(nn.Module):
    """LayerNorm and project the encoder's tokens; put the null token before them."""

    def __init__(self, text_dim: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_dim)
        self.project = nn.Linear(text_dim, cond_dim)
        self.null = nn.Parameter(torch.randn(1, 1, cond_dim))

    def forward(
        self, text_emb: torch.Tensor, text_mask: torch.Tensor, keep: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (b, 1 + l, cond_dim) and their additive attention bias (b, 1 + l).

        `text_emb`: (b, l, text_dim); `text_mask`: (b, l), True = token; `keep`: (b,), 0 = no text.
        """
        text_emb = text_emb.to(self.null.dtype)
        seen = text_mask.to(text_emb.dtype)
        if keep is not None:
            seen = seen * keep.to(text_emb.dtype)[:, None]
        tokens = self.project(self.norm(text_emb)) * seen[:, :, None]
        null = self.null.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        bias = functional.pad((1 - seen) * MASKED, (1, 0))
        return torch.cat([null, tokens], dim=1), bias


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


class ResamplerLayer(nn.Module):
    """The latents attend to the tokens and to each other, then pass through a feed-forward."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.heads = pool_heads(cond_dim)
        self.norm = nn.LayerNorm(cond_dim)
        self.norm_tokens = nn.LayerNorm(cond_dim)
        self.q = nn.Linear(cond_dim, cond_dim)
        self.kv = nn.Linear(cond_dim, 2 * cond_dim)
        self.out = zero_init(nn.Linear(cond_dim, cond_dim))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(cond_dim),
            nn.Linear(cond_dim, 4 * cond_dim),
            nn.SiLU(),
            zero_init(nn.Linear(4 * cond_dim, cond_dim)),
        )

    def forward(
        self, latents: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """`latents`: (b, n, cond_dim); `tokens`: (b, l, cond_dim); `bias`: (b, l) -> (b, n, ·)."""
        queries = self.norm(latents)
        keys = torch.cat([self.norm_tokens(tokens), queries], dim=1)
        bias = functional.pad(bias, (0, latents.shape[1]))
        k, v = self.kv(keys).chunk(2, dim=-1)
        latents = latents + self.out(attend(self.q(queries), k, v, bias, self.heads))
        return latents + self.feed_forward(latents)


class Resampler(nn.Module):
    """A fixed number of latents from any number of tokens.

    Perceiver resampler (Alayrac et al., arXiv:2204.14198, after Jaegle et al., arXiv:2103.03206).
    """

    def __init__(self, cond_dim: int, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, latents, cond_dim))
        self.layers = nn.ModuleList(ResamplerLayer(cond_dim) for _ in range(RESAMPLER_DEPTH))

    def forward(self, tokens: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`tokens`: (b, l, cond_dim); `bias`: (b, l) -> (b, latents, cond_dim)."""
        latents = self.latents.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        for layer in self.layers:
            latents = layer(latents, tokens, bias)
        return latents
