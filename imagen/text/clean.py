"""Caption cleaning: only what cannot change the meaning of a caption."""

import re
import unicodedata

VERSION = 1
"""Part of an encoder's fingerprint; raise it when `clean` changes."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\ufeff]+")


def clean(caption: str) -> str:
    """Return a caption in NFC, with control characters and runs of white space made one space.

    Nothing is lower-cased or deleted: DeepFloyd's cleaning makes `C++ vs C#` into `c vs c`.
    """
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", caption)).split())
