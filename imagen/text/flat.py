"""A T5 encoder over a flat stream of real tokens: no padding, so no mask and no work for nothing.

Everything but attention acts on each token alone and runs over (t, d). Captions come sorted by
length, so those of equal length stand next to each other and attend together: n captions of l
tokens are (n, heads, l, d_kv), and all they share is the bias of their relative positions. Weights
are those of a T5EncoderModel, MT5EncoderModel or UMT5EncoderModel of transformers, and so is the
arithmetic (Raffel et al., arXiv:1910.10683; gated feed-forward: Shazeer, arXiv:2002.05202), without
dropout.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen.text.pointwise import Pointwise

_SHORT = 256
"""Longest caption whose scores are held as a whole on a CPU."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, linears as (out, in)."""

    attention_norm: Tensor
    qkv: Tensor
    """Queries, keys and values, one below another."""
    out: Tensor
    buckets: Tensor
    """Position bias (buckets, heads): the layers of T5 share one, those of UMT5 have their own."""
    feed_norm: Tensor
    wi: Tensor
    """(d_ff, d); gated: (2 d_ff, d), the gate above the values."""
    wo: Tensor

    @property
    def size(self) -> int:
        """Weights that each token is multiplied with."""
        return sum(w.numel() for w in (self.qkv, self.out, self.wi, self.wo))


class FlatEncoder:
    """The forward pass of a loaded encoder. Both use the same memory, what is joined included."""

    def __init__(self, model: nn.Module) -> None:
        stack: Any = model.encoder
        self.config: Any = model.config
        self.embeddings: Tensor = stack.embed_tokens.weight
        self.final_norm: Tensor = stack.final_layer_norm.weight
        self.layers = _layers(stack)
        pointwise = Pointwise(self.config)
        self._pointwise = pointwise.compiled() if self.embeddings.is_cuda else pointwise

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.embeddings.dtype

    @functools.cached_property
    def matmul_rate(self) -> float:
        """Operations a second of a large matrix product: the best of some rounds."""
        size, device = (8192 if self.embeddings.is_cuda else 1024), self.device
        draw = torch.Generator(device).manual_seed(0)
        a = torch.randn(size, size, generator=draw, device=device).to(self.dtype)
        best = math.inf
        for _ in range(6):  # the first one warms up
            start = time.perf_counter()
            torch.mm(a, a)
            if a.is_cuda:
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the outputs (t, d) of captions that stand one after another in `ids` (t,).

        Right in any order; fast when captions of equal length stand together.
        """
        runs = [(length, len(list(same))) for length, same in itertools.groupby(lengths)]
        positions = _Positions(self.config, max(lengths), ids.device)
        x = F.embedding(ids, self.embeddings)
        for layer in self.layers:
            qkv = self._pointwise.project(x, layer.attention_norm, layer.qkv)
            heads = self._attend(qkv, runs, positions, layer.buckets)
            x = self._pointwise.join(x, heads, layer.out)
            x = self._pointwise.feed(x, layer.feed_norm, layer.wi, layer.wo)
        return self._pointwise.norm(x, self.final_norm)

    def _attend(
        self, qkv: Tensor, runs: list[tuple[int, int]], positions: "_Positions", buckets: Tensor
    ) -> Tensor:
        """Return what each token attends to (t, heads * d_kv), run by run of equal lengths."""
        heads, width = self.config.num_heads, self.config.d_kv
        found = qkv.new_empty(len(qkv), heads, width)
        start = 0
        for length, count in runs:
            end = start + length * count
            q, k, v = qkv[start:end].view(count, length, 3, heads, width).permute(2, 0, 3, 1, 4)
            run = attend(q, k, v, positions.bias(buckets, length))
            found[start:end].view(count, length, heads, width).copy_(run.transpose(1, 2))
            start = end
        return found.flatten(1)

    def outputs(
        self, batches: Sequence[tuple[np.ndarray, Sequence[int]]], dtype: torch.dtype
    ) -> Iterator[np.ndarray]:
        """Yield the outputs of batches of (ids, lengths) on the host.

        A GPU computes the next batch while the host takes one.
        """
        if not batches:
            return
        stream = torch.from_numpy(np.concatenate([ids for ids, _ in batches])).to(self.device)
        ahead: Callable[[], np.ndarray] | None = None
        parts = stream.split([len(ids) for ids, _ in batches])
        for part, (_, lengths) in zip(parts, batches, strict=True):
            with torch.inference_mode():
                started = _download(self(part, lengths).to(dtype))
            if ahead is not None:
                yield ahead()
            ahead = started
        if ahead is not None:
            yield ahead()

    def flops(self, lengths: Sequence[int]) -> int:
        """Return the useful operations of captions: linears on real tokens, scores and values."""
        inner = self.config.num_heads * self.config.d_kv
        tokens, pairs = sum(int(n) for n in lengths), sum(int(n) ** 2 for n in lengths)
        linear = 2 * sum(layer.size for layer in self.layers) * tokens
        return linear + 4 * len(self.layers) * inner * pairs


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(q k' + bias) v, unscaled as T5 has it, of (n, heads, l, d_kv)."""
    if q.is_cuda or q.dtype != torch.float32 or q.shape[2] > _SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    # half the time of the above on a CPU, whose kernels are made for longer rows: keys are
    # transposed before and not in the product, softmax is whole vectors, not row by row
    scores = torch.matmul(q, k.transpose(-1, -2).contiguous()).add_(bias)
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return torch.matmul(scores.div_(scores.sum(-1, keepdim=True)), v)


class _Positions:
    """Position biases of the lengths of one batch."""

    def __init__(self, config: Any, longest: int, device: torch.device) -> None:
        offsets = torch.arange(1 - longest, longest)
        self._buckets = bucket(
            offsets,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        ).to(device)
        self._steps = torch.arange(longest, device=device)
        self._made: dict[tuple[int, int], Tensor] = {}

    def bias(self, buckets: Tensor, length: int) -> Tensor:
        """Return what is added to the scores of a length, (1, heads, query, key)."""
        key = (id(buckets), length)
        if key not in self._made:
            steps = self._steps[:length]
            offsets = steps[None] - steps[:, None] + len(self._steps) - 1
            bias = F.embedding(self._buckets[offsets], buckets)
            self._made[key] = bias.permute(2, 0, 1)[None].contiguous()
        return self._made[key]


def bucket(offsets: Tensor, buckets: int, furthest: int) -> Tensor:
    """Return the buckets of offsets, key less query.

    Half are for each side; of those, half are single offsets, half widen up to `furthest`.
    """
    side = buckets // 2
    near, distance = side // 2, offsets.abs()
    widening = torch.log(distance.clamp(min=1).float() / near) / math.log(furthest / near)
    far = (near + (widening * (side - near)).long()).clamp(max=side - 1)
    return torch.where(distance < near, distance, far) + (offsets > 0) * side


def _download(hidden: Tensor) -> Callable[[], np.ndarray]:
    """Start to copy to the host; the result waits for the copy and returns it."""
    if not hidden.is_cuda:
        return hidden.numpy
    host = torch.empty_like(hidden, device="cpu", pin_memory=True)
    host.copy_(hidden, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def _layers(stack: Any) -> list[Layer]:
    layers: list[Layer] = []
    for attending, feeding in (block.layer for block in stack.block):
        attention, dense = attending.SelfAttention, feeding.DenseReluDense
        own = attention.has_relative_attention_bias
        layers.append(
            Layer(
                attention_norm=attending.layer_norm.weight,
                qkv=_joined(attention.q, attention.k, attention.v),
                out=attention.o.weight,
                buckets=attention.relative_attention_bias.weight if own else layers[-1].buckets,
                feed_norm=feeding.layer_norm.weight,
                wi=_joined(dense.wi_0, dense.wi_1) if hasattr(dense, "wi_0") else dense.wi.weight,
                wo=dense.wo.weight,
            )
        )
    return layers


def _joined(*linears: nn.Linear) -> Tensor:
    """Return the weights one below another; those of the linears become views of it."""
    whole = torch.cat([linear.weight.data for linear in linears])
    parts = whole.split([len(linear.weight) for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part
    return whole
