"""What a T5 layer does to each token alone, over a stream (t, d): all of it but attention."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_GELU = 2 * math.sqrt(2 / math.pi)


class Pointwise:
    """Norms, linears and activation of one encoder, whose layers differ by their weights only.

    On a CPU the stream is updated in place, where a matrix product adds to it at no cost.
    """

    def __init__(self, config: Any) -> None:
        from transformers.activations import ACT2FN

        self._eps = float(config.layer_norm_epsilon)
        self._gated = bool(config.is_gated_act)
        self._gelu = config.dense_act_fn == "gelu_new"
        self._other = ACT2FN[config.dense_act_fn]

    def compiled(self) -> "Pointwise":
        """Return itself with element-wise chains fused, for a GPU; one graph for any t."""
        for name in ("norm", "project", "join", "feed"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))
        return self

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x over its root mean square, taken in float32, times a weight."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (size.square() / x.shape[-1] + self._eps).rsqrt()
        return (x * scale).to(weight.dtype).mul_(weight)

    def project(self, x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        """Return a linear of the normalised stream."""
        return F.linear(self.norm(x, norm), weight)

    def join(self, x: Tensor, found: Tensor, weight: Tensor) -> Tensor:
        """Return the stream with a linear of `found` added."""
        return x.addmm(found, weight.t()) if x.is_cuda else x.addmm_(found, weight.t())

    def feed(self, x: Tensor, norm: Tensor, wi: Tensor, wo: Tensor) -> Tensor:
        """Return the stream with its feed-forward added."""
        hidden = self.project(x, norm, wi)
        if not self._gated:
            return self.join(x, self._activate(hidden), wo)
        gate, value = hidden.chunk(2, dim=-1)
        return self.join(x, self._activate(gate) * value, wo)

    def _activate(self, x: Tensor) -> Tensor:
        if not self._gelu:
            return self._other(x)
        if x.is_cuda or x.dtype != torch.float32:
            return F.gelu(x, approximate="tanh")
        # the same function, as 1 + tanh(u) = 2 sigmoid(2u): on a CPU F.gelu takes twice as long
        inner = torch.addcmul(x.new_tensor(_GELU), x, x, value=0.044715 * _GELU)
        return inner.mul_(x).sigmoid_().mul_(x)
