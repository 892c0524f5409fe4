"""The frozen text encoder: captions in, ragged token embeddings out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imagen.errors import ConfigError
from imagen.manifest import fingerprint
from imagen.text import clean, hf, plan, tiny_t5, tokens
from imagen.text.config import TINY_T5, TextConfig

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Part of every fingerprint; raise it when the same files would give other embeddings."""


class TextEncoder:
    """A T5 encoder. An embedding depends on its caption only, not on its neighbours in a batch."""

    def __init__(
        self, text: TextConfig, tokenizer: tokens.Tokenizer, model: "torch.nn.Module", code: str
    ) -> None:
        self.text = text
        self.fingerprint = code
        self._tokenizer = tokenizer
        self._model = model

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self._model.config.d_model)  # type: ignore[union-attr]

    def tokenize(self, captions: Sequence[str]) -> tokens.TokenRows:
        """Return the token ids of captions; those over `text.max_tokens` are cut and counted."""
        return tokens.tokenize(self._tokenizer, captions, self.text.max_tokens, self.text.cleaning)

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
        """Return all embeddings, one after another (total_tokens, d), and offsets (n + 1) int64.

        Batches are those of `plan`, so the same rows give the same bytes on the same machine.
        """
        lengths = [len(row) for row in rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.empty((int(offsets[-1]), self.dim), dtype=dtype)
        for batch in plan.plan(lengths):
            hidden = self._forward([rows[i] for i in batch], dtype)
            for i, row in zip(batch, hidden, strict=True):
                flat[offsets[i] : offsets[i + 1]] = row[: lengths[i]]
        return flat, offsets

    def _forward(self, rows: Sequence[Sequence[int]], dtype: type[np.floating]) -> np.ndarray:
        """Return the outputs of one batch, (b, longest, d); what stands beyond a row is garbage."""
        import torch

        device = next(self._model.parameters()).device
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        self._check(ids)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        with torch.inference_mode():
            output = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))
        wanted = torch.float16 if dtype is np.float16 else torch.float32
        return output.last_hidden_state.to(wanted).cpu().numpy()

    def _check(self, ids: "torch.Tensor") -> None:
        rows, largest = int(self._model.config.vocab_size), int(ids.max())  # type: ignore[union-attr]
        if largest >= rows:
            raise ConfigError(
                f"text.encoder `{self.text.encoder}`: its tokenizer gives id {largest}, its "
                f"weights have {rows} embeddings",
                "tokenizer and weights are of different models: save both together",
            )


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


def load_encoder(text: TextConfig, device: str = "cpu") -> TextEncoder:
    """Load an encoder. Raises ConfigError that says what to do when it is not available."""
    import torch

    if text.encoder == TINY_T5:
        model = tiny_t5.build_model().to(device, dtype=getattr(torch, text.dtype))  # type: ignore[call-overload]
        return TextEncoder(text, tiny_t5.HashTokenizer(), model, encoder_fingerprint(text))
    folder = hf.locate(text)
    model = hf.load_model(folder, text.dtype, device)
    code = _fingerprint(text, hf.content_hash(folder))
    return TextEncoder(text, hf.load_tokenizer(folder), model, code)
