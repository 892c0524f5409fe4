"""Which of the folders of embeddings is by which encoder."""

from collections.abc import Mapping
from typing import Any

from imagen import config, manifest, storage
from imagen.errors import ConfigError, ShardError
from imagen.text.config import TextConfig

RUN = "run `python -m preencode CONFIG` with this config"
"""What makes embeddings that are not there."""


def choose(root: str, text: TextConfig) -> tuple[str, dict[str, Any]]:
    """Return the one folder below `root` whose embeddings are by `text`, and its encoder.json."""
    there = [(f, e) for f in storage.listdir(root) if (e := _encoder(storage.join(root, f)))]
    matching = [(f, e) for f, e in there if _text(e) == text]
    if not there:
        raise ShardError(f"no embeddings in `{root}`", RUN)
    if not matching:
        found = "; ".join(f"{f}: {_describe(_text(e))}" for f, e in there)
        raise ShardError(
            f"`{root}` holds embeddings of another encoder: {found}; "
            f"the config wants {_describe(text)}",
            RUN + ", or set text to what the embeddings were made with",
        )
    if len(matching) > 1:
        names = ", ".join(f for f, _ in matching)
        raise ShardError(
            f"`{root}` holds embeddings of {len(matching)} versions of {text.encoder}: {names}",
            "delete the folders of the versions that you do not want",
        )
    return storage.join(root, matching[0][0]), matching[0][1]


def _encoder(folder: str) -> dict[str, Any] | None:
    path = storage.join(folder, "encoder.json")
    return manifest.read(path, "encoder") if storage.exists(path) else None


def _text(encoder: Mapping[str, Any]) -> TextConfig | None:
    """Return whose embeddings these are; None when a newer version of this code made them."""
    try:
        return config.build(TextConfig, encoder["text"])  # fields that came later: their defaults
    except ConfigError:
        return None


def _describe(text: TextConfig | None) -> str:
    if text is None:
        return "an encoder that this version does not know"
    revision = f" at {text.revision}" if text.revision else ""
    about = f"max_tokens {text.max_tokens}, {text.dtype}, cleaning {text.cleaning}"
    return f"{text.encoder}{revision} ({about})"
