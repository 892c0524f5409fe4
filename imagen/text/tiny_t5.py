"""The built-in encoder `tiny-t5`: a real one-layer T5 that is built, not trained, and binds words.

A T5 with its usual initialisation attends evenly: each token's output is "own word + mean of the
caption", so "red square blue circle" and "blue square red circle" cannot be told apart. Here head h
is biased towards the token at offset `OFFSETS[h]`, so that each output holds its word and, in
directions of their own, the four words before and after it. Nothing is downloaded: words are hashed
to rows of the embedding table, so there is no vocabulary file and no unknown word either.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imagen.text.config import TINY_T5_DIM

if TYPE_CHECKING:
    from transformers import T5EncoderModel

VERSION = 1
"""Part of the fingerprint; raise it when weights or tokenizer change."""
SEED = 1910  # T5 is arXiv:1910.10683
ROWS = 16384
"""Rows of the embedding table: 0 is padding, 1 the end of sequence, words share the others."""
OFFSETS = (-4, -3, -2, -1, 1, 2, 3, 4)
"""Where each head looks, in tokens from its own."""
HEADS, HEAD_DIM, HIDDEN, BUCKETS = len(OFFSETS), TINY_T5_DIM // len(OFFSETS), 512, 32
_PULL = 8.0
"""Bias of a head at its offset, 0 elsewhere: e^8 to 1 against any other token."""
_EOS = 1
_WORDS = re.compile(r"\w+|[^\w\s]")


class HashTokenizer:
    """Whole words, lower-cased, and punctuation marks, each hashed to a row."""

    eos = _EOS

    def ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption."""
        return [[row_of(word) for word in _WORDS.findall(c.lower())] for c in captions]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return `#row` of each id, for a hash cannot be read back; the end is `</s>`."""
        return ["</s>" if i == _EOS else f"#{i}" for i in ids]


def row_of(word: str) -> int:
    """Return the embedding row of a word: BLAKE2b of its UTF-8, over the rows from 2."""
    hashed = hashlib.blake2b(word.encode("utf8", "surrogatepass"), digest_size=8).digest()
    return 2 + int.from_bytes(hashed, "big") % (ROWS - 2)


def bucket(offset: int) -> int:
    """Return T5's relative-position bucket of a short offset (its own bucket below 8 tokens)."""
    return abs(offset) + (BUCKETS // 2 if offset > 0 else 0)


def weights() -> dict[str, np.ndarray]:
    """Return all weights by their name in `T5EncoderModel`.

    Drawn from NumPy's RandomState (MT19937), whose streams NumPy has frozen for good (NEP 19).
    """
    draw = np.random.RandomState(SEED)
    d, inner = TINY_T5_DIM, HEADS * HEAD_DIM

    def normal(std: float, *shape: int) -> np.ndarray:
        return (std * draw.standard_normal(shape)).astype(np.float32)

    bias = np.zeros((BUCKETS, HEADS), dtype=np.float32)
    bias[[bucket(o) for o in OFFSETS], range(HEADS)] = _PULL
    one = np.ones(d, dtype=np.float32)
    attention, dense = "encoder.block.0.layer.0.", "encoder.block.0.layer.1."
    return {
        "shared.weight": normal(1.0, ROWS, d),
        attention + "SelfAttention.q.weight": normal(0.25 * d**-0.5, inner, d),
        attention + "SelfAttention.k.weight": normal(0.25 * d**-0.5, inner, d),
        attention + "SelfAttention.v.weight": normal(d**-0.5, inner, d),
        attention + "SelfAttention.o.weight": normal(2 * inner**-0.5, d, inner),
        attention + "SelfAttention.relative_attention_bias.weight": bias,
        attention + "layer_norm.weight": one,
        dense + "DenseReluDense.wi.weight": normal(d**-0.5, HIDDEN, d),
        dense + "DenseReluDense.wo.weight": normal(0.5 * HIDDEN**-0.5, d, HIDDEN),
        dense + "layer_norm.weight": one,
        "encoder.final_layer_norm.weight": one,
    }


def build_model() -> "T5EncoderModel":
    """Return the encoder in evaluation mode."""
    import torch
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=ROWS,
        d_model=TINY_T5_DIM,
        d_kv=HEAD_DIM,
        d_ff=HIDDEN,
        num_layers=1,
        num_heads=HEADS,
        relative_attention_num_buckets=BUCKETS,
        dropout_rate=0.0,
        feed_forward_proj="relu",
    )
    with torch.device("meta"):  # no random draw is spent on weights that are replaced
        model = T5EncoderModel._from_config(config, attn_implementation="sdpa")
    state = {name: torch.from_numpy(w) for name, w in weights().items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
