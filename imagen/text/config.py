"""What decides a text embedding."""

import json
import os
from dataclasses import dataclass
from typing import get_args

from imagen.errors import ConfigError
from imagen.text.clean import Cleaning

TINY_T5 = "tiny-t5"
"""Name of the built-in encoder: built from a seed, nothing to download."""
TINY_T5_DIM = 256
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """The frozen text encoder: which one, and what it is given."""

    encoder: str = TINY_T5
    """`tiny-t5`, or a Hugging Face name or local folder of a T5, v1.1, flan, mT5, UMT5 or ByT5."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face encoder; None: its default branch."""
    max_tokens: int = 128
    """Longest token sequence, end of sequence included; longer captions are cut and counted."""
    dtype: str = "float32"
    """What the encoder computes in: float32, or bfloat16 on GPUs. Never float16: T5 overflows."""
    cleaning: Cleaning = "light"
    """What is done to captions: light (white space), none, or web (URLs, HTML, file names too)."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens {self.max_tokens} leaves no room for text and its end")
        if self.dtype in ("float16", "fp16", "half"):
            raise ConfigError(
                f"dtype {self.dtype!r} is refused: T5 was trained in bfloat16, its feed-forward "
                "layers overflow float16, and the embeddings would be wrong or not numbers",
                "use dtype bfloat16, as small and as fast on a GPU, or float32",
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.cleaning not in get_args(Cleaning):
            raise ConfigError(
                f"cleaning {self.cleaning!r} is none of {', '.join(get_args(Cleaning))}"
            )

    @property
    def dim(self) -> int | None:
        """Embedding width where it is known without fetching the encoder, else None.

        That is: of the built-in encoder, and of a local folder by its config.json.
        """
        if self.encoder == TINY_T5:
            return TINY_T5_DIM
        try:
            with open(os.path.join(self.encoder, "config.json"), encoding="utf8") as file:
                return int(json.load(file)["d_model"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not here, or damaged: who loads it says so
