"""From captions to ragged rows of token ids, every one of them closed by the end of sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from imagen.text.clean import Cleaning, clean


class Tokenizer(Protocol):
    """What turns cleaned captions into token ids, without special tokens."""

    eos: int
    """Id of the end of sequence."""

    def ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return ids as people read them, `#123` where the tokenizer cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token ids of captions, and what was done to them."""

    ids: list[list[int]]
    truncated: int
    """Captions that were longer than the encoder's limit."""
    lost_tokens: int
    """Tokens that were cut from them."""
    empty: int
    """Captions with no token but the end of sequence."""


def tokenize(
    tokenizer: Tokenizer,
    captions: Sequence[str],
    max_tokens: int,
    cleaning: Cleaning = "light",
) -> TokenRows:
    """Return the ids of all captions; one longer than `max_tokens` is cut, its end kept.

    A caption of which cleaning leaves nothing, or nothing but white space, is the end of sequence
    alone whatever the tokenizer: the null text, which networks are told is none.
    """
    cleaned = [clean(c, cleaning) for c in captions]
    rows = tokenizer.ids(cleaned) if captions else []
    rows = [row if clean(text) else [] for text, row in zip(cleaned, rows, strict=True)]
    lost = [max(0, len(row) + 1 - max_tokens) for row in rows]
    return TokenRows(
        ids=[[*row[: max_tokens - 1], tokenizer.eos] for row in rows],
        truncated=sum(n > 0 for n in lost),
        lost_tokens=sum(lost),
        empty=sum(not row for row in rows),
    )


def distinct(rows: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], np.ndarray]:
    """Return the distinct rows, first appearance first, and for each row which it is, int32."""
    place: dict[tuple[int, ...], int] = {}
    slots = [place.setdefault(tuple(row), len(place)) for row in rows]
    return list(place), np.array(slots, dtype=np.int32)
