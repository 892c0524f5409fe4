"""Attention of pixels among themselves and to the text.

The text mask is an additive bias of 0 and -1e4 with one key that is always valid, so that no row is
fully masked and the exported softmax needs no guards against NaN.
"""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional

from imagen.network.blocks import as_image, as_pixels, group_norm, zero_init
from imagen.network.config import UNetConfig

MASKED = -1e4


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(b, m, w) -> (b, heads, m, w / heads), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, heads: int
) -> torch.Tensor:
    """Multi-head attention. `q`: (b, m, w); `k`, `v`: (b, l, w); `bias`: (b, l) or None."""
    q, k, v = (split_heads(z, heads) for z in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[:, None, None, :]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def attend_linearly(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, heads: int
) -> torch.Tensor:
    """Efficient attention (Shen et al., arXiv:1812.01243), linear in m + l; shapes as `attend`.

    Queries are normalised over their channels and keys over their positions, so that keys and
    values can be multiplied first.
    """
    if bias is not None:
        k = k + bias[:, :, None]
    q, k, v = (split_heads(z, heads) for z in (q, k, v))
    context = k.softmax(dim=2).transpose(2, 3) @ v  # (b, n, w/n, w/n)
    return (q.softmax(dim=3) @ context).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention of the pixels, with the text's keys and values joined (Imagen, App. D.3.1).

    `text_dim`: width of the joined tokens, 0 = none. `linear`: its cost grows with the number of
    pixels, not with its square.
    """

    def __init__(self, width: int, text_dim: int, head_dim: int, linear: bool = False) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.attend = attend_linearly if linear else attend
        self.norm = group_norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.text_kv = nn.Linear(text_dim, 2 * width) if text_dim else None
        self.out = zero_init(nn.Linear(width, width))

    def forward(
        self, x: torch.Tensor, text: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`x`: (b, width, h, w); `text`: (b, l, text_dim); `bias`: (b, l) -> as `x`."""
        q, k, v = self.qkv(as_pixels(self.norm(x))).chunk(3, dim=-1)
        if self.text_kv is None:
            bias = None
        else:
            assert text is not None, "text is checked before any layer runs"
            text_k, text_v = self.text_kv(text).chunk(2, dim=-1)
            k, v = torch.cat([text_k, k], dim=1), torch.cat([text_v, v], dim=1)
            bias = None if bias is None else functional.pad(bias, (0, q.shape[1]))
        return x + as_image(self.out(self.attend(q, k, v, bias, self.heads)), x)


class CrossAttention(nn.Module):
    """Attention from the pixels to the text tokens."""

    def __init__(self, width: int, text_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.norm = group_norm(width)
        self.q = nn.Linear(width, width)
        self.text_kv = nn.Linear(text_dim, 2 * width)
        self.out = zero_init(nn.Linear(width, width))

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`x`: (b, width, h, w); `text`: (b, l, text_dim); `bias`: (b, l) -> as `x`."""
        q = self.q(as_pixels(self.norm(x)))
        k, v = self.text_kv(text).chunk(2, dim=-1)
        return x + as_image(self.out(attend(q, k, v, bias, self.heads)), x)


class FeedForward(nn.Module):
    """Two layers on each pixel by itself."""

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.hidden = nn.Linear(width, multiple * width)
        self.out = zero_init(nn.Linear(multiple * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: (b, width, h, w) -> as `x`."""
        hidden = functional.silu(self.hidden(as_pixels(self.norm(x))))
        return x + as_image(self.out(hidden), x)


class Attentions(nn.Module):
    """The attention at one resolution: layers of self or linear, cross and feed-forward.

    `kinds`: which of "self", "linear" and "cross"; none is the identity.
    """

    def __init__(
        self, config: UNetConfig, width: int, kinds: Collection[str], depth: int | None = None
    ) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        depth = config.attention_depth if depth is None else depth
        text_dim = config.cond_dim if config.text_dim else 0
        joined = text_dim * config.text_in_self_attention
        args = (width, joined, config.head_dim)
        self.self_attention = SelfAttention(*args) if "self" in kinds else None
        self.linear_attention = SelfAttention(*args, linear=True) if "linear" in kinds else None
        cross = "cross" in kinds
        self.cross_attention = CrossAttention(width, text_dim, config.head_dim) if cross else None
        multiple = config.feed_forward if kinds else 0
        self.feed_forward = FeedForward(width, multiple) if multiple else None
        deeper = kinds and depth > 1
        self.deeper = Attentions(config, width, kinds, depth - 1) if deeper else None

    def forward(
        self, x: torch.Tensor, text: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`x`: (b, width, h, w); `text`: (b, l, cond_dim); `bias`: (b, l) -> as `x`."""
        for attention in (self.self_attention, self.linear_attention, self.cross_attention):
            if attention is not None:
                x = attention(x, text, bias)
        if self.feed_forward is not None:
            x = self.feed_forward(x)
        return x if self.deeper is None else self.deeper(x, text, bias)
