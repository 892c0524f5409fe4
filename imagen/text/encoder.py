"""The frozen text encoder: captions in, ragged token embeddings out."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imagen.errors import ConfigError
from imagen.manifest import fingerprint
from imagen.text import clean, hf, plan, tiny_t5, tokens
from imagen.text.config import TINY_T5, TextConfig

if TYPE_CHECKING:
    import torch

VERSION = 2
"""Part of every fingerprint; raise it when the same files would give other embeddings."""


class TextEncoder:
    """A T5 encoder. An embedding depends on its caption only, not on its neighbours in a batch."""

    def __init__(
        self,
        text: TextConfig,
        tokenizer: tokens.Tokenizer,
        model: "torch.nn.Module",
        code: str,
        batch_tokens: int | None = None,
    ) -> None:
        self.text = text
        self.fingerprint = code
        from imagen.text.flat import FlatEncoder

        self._tokenizer = tokenizer
        self._model = model
        self._flat = FlatEncoder(model)
        default = plan.GPU_TOKENS if self._flat.device.type == "cuda" else plan.CPU_TOKENS
        self._batch_tokens = batch_tokens or default

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self._flat.config.d_model)

    def tokenize(self, captions: Sequence[str]) -> tokens.TokenRows:
        """Return the token ids of captions; those over `text.max_tokens` are cut and counted."""
        return tokens.tokenize(self._tokenizer, captions, self.text.max_tokens, self.text.cleaning)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return token ids as people read them: `▁cat`, or `#123` where that is not known."""
        return self._tokenizer.pieces(ids)

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Return the embedding of each caption, (l, d) float32, equal captions once.

        An empty caption has one row, its end of sequence: the null text.
        """
        rows, slots = tokens.distinct(self.tokenize(captions).ids)
        flat, offsets = self.encode_ids(rows, np.float32)
        return [flat[offsets[s] : offsets[s + 1]] for s in slots]

    def encode_ids(
        self, rows: Sequence[Sequence[int]], dtype: type[np.floating]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return all embeddings, one after another (total_tokens, d), and offsets (n + 1) int64."""
        offsets = _offsets(rows)
        out = np.empty((int(offsets[-1]), self.dim), dtype=dtype)
        self.encode_into(rows, out)
        return out, offsets

    def encode_into(self, rows: Sequence[Sequence[int]], out: np.ndarray) -> None:
        """Write all embeddings, one after another, to `out` (total_tokens, d), which may be a map.

        `out` is float16 or float32. Batches are those of `plan`, so the same rows give the same
        bytes on the same machine; the outputs of two batches are in memory, no more.
        """
        import torch

        offsets = _offsets(rows)
        size = int(offsets[-1])
        assert out.shape == (size, self.dim), f"{size} tokens do not fill {out.shape}"
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, size)
        self._check(ids)
        lengths = np.diff(offsets)
        batches = [np.array(b) for b in plan.plan(lengths.tolist(), self._batch_tokens)]
        places = [_places(offsets[batch], lengths[batch]) for batch in batches]
        outputs = self._flat.outputs(
            [(ids[place], lengths[b].tolist()) for place, b in zip(places, batches, strict=True)],
            torch.float16 if out.dtype == np.float16 else torch.float32,
        )
        for place, output in zip(places, outputs, strict=True):
            out[place] = output

    def flops(self, lengths: Sequence[int]) -> int:
        """Return the useful operations of encoding captions of these lengths, two a multiply-add.

        Those of real tokens: linears on each, scores and values on each pair of a caption's.
        """
        return self._flat.flops(lengths)

    def matmul_rate(self) -> float:
        """Return the operations a second of a large matrix product here, measured once.

        On the encoder's device, in its dtype, with the threads of the first call.
        """
        return self._flat.matmul_rate

    def _check(self, ids: np.ndarray) -> None:
        rows, largest = int(self._flat.config.vocab_size), int(ids.max(initial=0))
        if largest >= rows:
            raise ConfigError(
                f"text.encoder `{self.text.encoder}`: its tokenizer gives id {largest}, its "
                f"weights have {rows} embeddings",
                "tokenizer and weights are of different models: save both together",
            )


def _offsets(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the row of each token of captions that start at `starts`."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def encoder_fingerprint(text: TextConfig, *, download: bool = True) -> str:
    """Return what identifies an encoder, without loading its weights.

    It covers weights, tokenizer, cleaning, longest length and compute dtype. Raises ConfigError
    when the encoder is not here (and cannot or may not be downloaded).
    """
    if text.encoder == TINY_T5:
        return _fingerprint(text, f"{TINY_T5}/{tiny_t5.VERSION}")
    return _fingerprint(text, hf.content_hash(hf.locate(text, download=download)))


def _fingerprint(text: TextConfig, content: str) -> str:
    return fingerprint(
        {
            "version": VERSION,
            "clean": clean.VERSIONS[text.cleaning],
            "content": content,
            "max_tokens": text.max_tokens,
            "dtype": text.dtype,
        }
    )


def load_tokenizer(text: TextConfig, *, download: bool = True) -> tokens.Tokenizer:
    """Load an encoder's tokenizer alone. Raises ConfigError when it is not available."""
    if text.encoder == TINY_T5:
        return tiny_t5.HashTokenizer()
    return hf.load_tokenizer(hf.locate(text, download=download))


def load_encoder(
    text: TextConfig, device: str = "cpu", batch_tokens: int | None = None
) -> TextEncoder:
    """Load an encoder. Raises ConfigError that says what to do when it is not available.

    `batch_tokens`: tokens that are encoded together; None: what suits the device (see `plan`).
    """
    import torch

    if text.encoder == TINY_T5:
        model = tiny_t5.build_model().to(device, dtype=getattr(torch, text.dtype))  # type: ignore[call-overload]
        code, tokenizer = encoder_fingerprint(text), tiny_t5.HashTokenizer()
    else:
        folder = hf.locate(text)
        model = hf.load_model(folder, text.dtype, device)
        code = _fingerprint(text, hf.content_hash(folder))
        tokenizer = hf.load_tokenizer(folder)
    return TextEncoder(text, tokenizer, model, code, batch_tokens)
