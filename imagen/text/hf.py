"""T5, mT5, UMT5 and ByT5 encoders of Hugging Face: by name, or from a local folder."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from imagen.errors import ConfigError
from imagen.text.config import TINY_T5, TextConfig
from imagen.text.tokens import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODELS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""`model_type` of a config.json -> class in transformers; a ByT5 is a T5 with another tokenizer."""
VERSION = 2
"""Part of every fingerprint; raise it when the same files would give other tokens."""
_SMALL = ("*.json", "*.model", "*.txt")
_WEIGHTS = "*.safetensors"
_PIECES = ("spiece.model", "tokenizer.model")
"""Names of a SentencePiece vocabulary: what the encoder was trained with, so it goes first."""
_VOCABULARIES = ("tokenizer.json", *_PIECES)
_SPECIAL = re.compile(r"(<)(?=/?s>|pad>|unk>|extra_id_\d+>)")
"""The special tokens of the whole family, where a caption spells them."""


@contextlib.contextmanager
def _reading(what: str, folder: str) -> Iterator[None]:
    """Turn what transformers raises for files that are damaged or missing into ConfigError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as err:
        reason = (str(err).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"the {what} in `{folder}` cannot be read: {type(err).__name__}: {reason}",
            "the folder is damaged or incomplete: fetch or save the model again",
        ) from err


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and from listing the decoder's weights as unexpected."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_tokenizer(folder: str) -> Tokenizer:
    """Return the tokenizer of a folder. Raises ConfigError when it is damaged or no T5's."""
    paths = [os.path.join(folder, name) for name in _PIECES]
    path = next(filter(os.path.exists, paths), None)
    with _reading("tokenizer", folder):
        return HubTokenizer(folder) if path is None else PieceTokenizer(path)


def _plain(captions: Sequence[str]) -> list[str]:
    """Return captions in which a written special token is text: `</s>` would end the caption."""
    return [_SPECIAL.sub(r"\1 ", caption) for caption in captions]


class PieceTokenizer:
    """A SentencePiece vocabulary, read as its encoder was trained with it.

    transformers 5 would read one without its byte fallback, so that characters that are not in the
    vocabulary became unknown, and would add 100 ids that an encoder may have no embedding for.
    """

    def __init__(self, path: str) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._pieces = SentencePieceProcessor(model_file=path)
        except RuntimeError as err:  # what it raises for a file that is no vocabulary
            raise ValueError(str(err)) from err
        self.eos: int = self._pieces.eos_id()
        if self.eos < 0:
            raise ValueError("it has no end of sequence")

    def ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption."""
        return self._pieces.encode(_plain(captions), num_threads=1)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, `#123` beyond the vocabulary."""
        known = self._pieces.get_piece_size()
        return [self._pieces.id_to_piece(i) if 0 <= i < known else f"#{i}" for i in ids]


class HubTokenizer:
    """A tokenizer of transformers, without special tokens."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if self._tokenizer.eos_token_id is None:
            raise ValueError("it has no end of sequence")
        self.eos: int = self._tokenizer.eos_token_id

    def ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption."""
        # one call, no padding, no tensors: 6 times faster than one by one
        rows = self._tokenizer(_plain(captions), add_special_tokens=False, verbose=False)
        return rows["input_ids"]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, `#123` beyond the vocabulary."""
        known = len(self._tokenizer)
        return [
            self._tokenizer.convert_ids_to_tokens(i) if 0 <= i < known else f"#{i}" for i in ids
        ]


def locate(text: TextConfig, *, download: bool = True) -> str:
    """Return the local folder of an encoder, downloading it when allowed and needed.

    Raises ConfigError when it is neither a folder, nor cached, nor on the hub, or lacks a file.
    """
    folder = text.encoder if os.path.isdir(text.encoder) else _from_hub(text, download)
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise _lacking(text, folder, "config.json")
    if not _weights(folder):
        raise _lacking(text, folder, f"{_WEIGHTS} (weights in pickles are not read)")
    if not _has_tokenizer(folder):
        # transformers would make up an empty tokenizer, for which all captions are the same
        raise _lacking(text, folder, f"tokenizer ({' or '.join(_VOCABULARIES)})")
    return folder


def _lacking(text: TextConfig, folder: str, what: str) -> ConfigError:
    name = text.encoder
    return ConfigError(
        f"text.encoder `{name}`: there is no {what} in `{folder}`",
        "save model and tokenizer with `save_pretrained`; a pickle may run any code, so convert it "
        f"where you trust it: python -c \"import transformers as t; n = '{name}'; "
        "t.AutoModelForTextEncoding.from_pretrained(n).save_pretrained('DIR'); "
        "t.AutoTokenizer.from_pretrained(n).save_pretrained('DIR')\", copy its spiece.model "
        "to DIR if it has one, then set text.encoder=DIR",
    )


def _has_tokenizer(folder: str) -> bool:
    """Tell whether a vocabulary is there; ByT5 needs none, its tokens are bytes."""
    if any(os.path.exists(os.path.join(folder, name)) for name in _VOCABULARIES):
        return True
    path = os.path.join(folder, "tokenizer_config.json")
    if not os.path.exists(path):
        return False
    with _reading("tokenizer", folder), open(path, "rb") as file:
        return str(json.load(file)["tokenizer_class"]).startswith("ByT5")


def _from_hub(text: TextConfig, download: bool) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(
            text.encoder,
            revision=text.revision,
            allow_patterns=[*_SMALL, _WEIGHTS],
            local_files_only=not download,
        )
    except HFValidationError as err:
        raise ConfigError(
            f"text.encoder `{text.encoder}` is no folder and no name on the Hugging Face hub",
            f"use `{TINY_T5}`, a name such as `google/flan-t5-xl`, or the path of a folder",
        ) from err
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[-1]
        raise ConfigError(
            f"text.encoder `{text.encoder}` cannot be fetched and is not on this machine: {reason}",
            f"check the name and the network; or use `{TINY_T5}`, which needs no download, or the "
            "path of a folder that has config.json, tokenizer and weights",
        ) from err


def _weights(folder: str) -> list[str]:
    return sorted(n for n in os.listdir(folder) if n.endswith(_WEIGHTS[1:]))


def content_hash(folder: str) -> str:
    """Return the SHA-256 over config, tokenizer and weight files and how they are read."""
    names = os.listdir(folder)
    wanted = {n for n in names if n.endswith(tuple(p[1:] for p in _SMALL))} | set(_weights(folder))
    hashed = hashlib.sha256(f"{VERSION}\n".encode())
    for name in sorted(wanted):
        hashed.update(f"{name}\0{_file_hash(os.path.join(folder, name))}\n".encode())
    return hashed.hexdigest()


def _file_hash(path: str) -> str:
    blob = os.path.basename(os.path.realpath(path))
    if len(blob) == 64 and os.path.islink(path):
        return blob  # the hub's cache names large files by their SHA-256
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(folder: str, dtype: str, device: str) -> "PreTrainedModel":
    """Return the encoder half of a model in evaluation mode. Raises ConfigError.

    Only the encoder's weights are read, also where the file holds a decoder as well.
    """
    import torch
    import transformers

    with _reading("config", folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in MODELS:
        raise ConfigError(
            f"`{folder}` is a {config.model_type!r} model; supported are {', '.join(MODELS)}",
            "a ByT5 is of type t5",
        )
    with _reading("model", folder), _quiet():
        loaded: tuple[Any, dict] = getattr(transformers, MODELS[config.model_type]).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",  # flex_attention of transformers 5 is wrong for batches
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"`{folder}` lacks {len(missing)} encoder weights, for example {missing[0]}",
            "the folder is incomplete: fetch or save the model again",
        )
    return model.to(device).eval().requires_grad_(False)
