"""T5, mT5, UMT5 and ByT5 encoders of Hugging Face: by name, or from a local folder."""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagen.errors import ConfigError
from imagen.text.config import TINY_T5, TextConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODELS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""`model_type` of a config.json -> class in transformers; a ByT5 is a T5 with another tokenizer."""
_SMALL = ("*.json", "*.model", "*.txt")
_WEIGHTS = ("*.safetensors", "*.bin")
"""Weight files, best first; only the first kind that a folder has is downloaded and used."""


class HubTokenizer:
    """A tokenizer of Hugging Face, without special tokens."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if self._tokenizer.eos_token_id is None:
            raise ConfigError(f"the tokenizer in `{folder}` has no end of sequence: no T5")
        self.eos: int = self._tokenizer.eos_token_id

    def ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption."""
        # one call, no padding, no tensors: 6 times faster than one by one
        rows = self._tokenizer(list(captions), add_special_tokens=False, verbose=False)
        return rows["input_ids"]


def locate(text: TextConfig, *, download: bool = True) -> str:
    """Return the local folder of an encoder, downloading it when allowed and needed.

    Raises ConfigError when it is neither a folder, nor cached, nor on the hub.
    """
    folder = text.encoder if os.path.isdir(text.encoder) else _from_hub(text, download)
    for needed in ("config.json", *(() if _weights(folder) else _WEIGHTS)):
        if not os.path.exists(os.path.join(folder, needed)):
            raise ConfigError(
                f"text.encoder `{text.encoder}`: there is no {needed} in `{folder}`",
                "save it with `save_pretrained`, model and tokenizer",
            )
    return folder


def _from_hub(text: TextConfig, download: bool) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: Sequence[str]) -> str:
        return snapshot_download(
            text.encoder,
            revision=text.revision,
            allow_patterns=list(patterns),
            local_files_only=not download,
        )

    try:
        folder = fetch([*_SMALL, _WEIGHTS[0]])
        return folder if _weights(folder) else fetch([*_SMALL, _WEIGHTS[1]])
    except HFValidationError as err:
        raise ConfigError(
            f"text.encoder `{text.encoder}` is no folder and no name on the Hugging Face hub",
            f"use `{TINY_T5}`, a name such as `google/t5-v1_1-xl`, or the path of a folder",
        ) from err
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[-1]
        raise ConfigError(
            f"text.encoder `{text.encoder}` cannot be fetched and is not on this machine: {reason}",
            f"check the name and the network; or use `{TINY_T5}`, which needs no download, or the "
            "path of a folder that has config.json, tokenizer and weights",
        ) from err


def _weights(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    kinds = ([n for n in names if n.endswith(kind[1:])] for kind in _WEIGHTS)
    return next((found for found in kinds if found), [])


def content_hash(folder: str) -> str:
    """Return the SHA-256 over the names and contents of config, tokenizer and weight files."""
    names = os.listdir(folder)
    wanted = {n for n in names if n.endswith(tuple(p[1:] for p in _SMALL))} | set(_weights(folder))
    hashed = hashlib.sha256()
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
    """Return the encoder half of a model in evaluation mode. Raises ConfigError."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # it draws on stderr, terminal or not
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in MODELS:
        raise ConfigError(
            f"`{folder}` is a {config.model_type!r} model; supported are {', '.join(MODELS)}",
            "a ByT5 is of type t5",
        )
    loaded: tuple[Any, dict] = getattr(transformers, MODELS[config.model_type]).from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",  # flex_attention of transformers 5 is wrong for batches
        local_files_only=True,
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
