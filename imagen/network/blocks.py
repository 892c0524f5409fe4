"""The parts of a U-Net. Imagen: Saharia et al., arXiv:2205.11487, Appendix B and F.

Attention uses an additive mask of 0 and -1e4 with one key that is always valid, so that no row is
fully masked and the exported softmax needs no guards against NaN.
"""

import torch
from torch import nn
from torch.nn import functional

MASKED = -1e4


def num_groups(width: int) -> int:
    """Return the groups of a norm: at least 4 channels in each, at most 32 groups."""
    return max(1, min(32, width // 4))


def group_norm(width: int) -> nn.GroupNorm:
    """Return the GroupNorm of a width."""
    return nn.GroupNorm(num_groups(width), width)


def zero_init(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Set weight and bias to zero, so that the branch starts as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResBlock(nn.Module):
    """Two convolutions; the condition scales and shifts the second norm (BigGAN style)."""

    def __init__(self, width_in: int, width_out: int, cond_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.scale_shift = nn.Linear(cond_dim, 2 * width_out)
        self.norm2 = group_norm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(width_out, width_out, 3, padding=1))
        same = width_in == width_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """`x`: (b, width_in, h, w); `cond`: (b, cond_dim) -> (b, width_out, h, w)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.scale_shift(cond)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.shortcut(x) + self.conv2(self.dropout(h))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, heads: int
) -> torch.Tensor:
    """Multi-head attention. `q`: (b, m, w); `k`, `v`: (b, l, w); `bias`: (b, l) or None."""
    q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))  # (b, n, ·, w/n)
    mask = None if bias is None else bias[:, None, None, :].expand(-1, heads, q.shape[2], -1)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention of the pixels, with the text's keys and values joined (Imagen, Sec. 2.5)."""

    def __init__(self, width: int, cond_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.norm = group_norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.text_kv = nn.Linear(cond_dim, 2 * width)
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, text: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`x`: (b, width, h, w); `text`: (b, l, cond_dim); `bias`: (b, l) -> as `x`."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (b, h w, width)
        q, k, v = self.qkv(pixels).chunk(3, dim=-1)
        text_k, text_v = self.text_kv(text).chunk(2, dim=-1)
        no_bias = bias.new_zeros(bias.shape[0], pixels.shape[1])
        k, v = torch.cat([text_k, k], dim=1), torch.cat([text_v, v], dim=1)
        h = attend(q, k, v, torch.cat([bias, no_bias], dim=1), self.heads)
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class CrossAttention(nn.Module):
    """Attention from the pixels to the text tokens."""

    def __init__(self, width: int, cond_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.norm = group_norm(width)
        self.q = nn.Linear(width, width)
        self.text_kv = nn.Linear(cond_dim, 2 * width)
        self.out = zero_init(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, text: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`x`: (b, width, h, w); `text`: (b, l, cond_dim); `bias`: (b, l) -> as `x`."""
        q = self.q(self.norm(x).flatten(2).transpose(1, 2))
        k, v = self.text_kv(text).chunk(2, dim=-1)
        h = attend(q, k, v, bias, self.heads)
        return x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width_in, h, w) -> (b, width_out, h/2, w/2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width_in, h, w) -> (b, width_out, 2h, 2w)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
