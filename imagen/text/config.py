"""What decides a text embedding."""

from dataclasses import dataclass
from typing import Literal

from imagen.errors import ConfigError

TINY_T5 = "tiny-t5"
"""Name of the built-in encoder: built from a seed, nothing to download."""
TINY_T5_DIM = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """The frozen text encoder: which one, and what it is given."""

    encoder: str = TINY_T5
    """`tiny-t5`, or a Hugging Face name or local folder of a T5, UMT5 or ByT5."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face encoder; None: its default branch."""
    max_tokens: int = 128
    """Longest token sequence, end of sequence included; longer captions are cut and counted."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the encoder computes in. T5 overflows in float16, so that is not offered."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens {self.max_tokens} leaves no room for text and its end")

    @property
    def dim(self) -> int | None:
        """Embedding width where it is known without reading the encoder, else None."""
        return TINY_T5_DIM if self.encoder == TINY_T5 else None
