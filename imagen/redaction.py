"""Secrets stay out of logs, messages and stored configs: found by how they look."""

import re
from collections.abc import Iterator
from typing import Any

_HIDDEN = "…"
_SECRETS = (
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", _HIDDEN),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]+", rf"\1{_HIDDEN}"),
    (r"\bya29\.[\w.~+/=-]+", _HIDDEN),  # OAuth tokens of Google
    (r"\bhf_[A-Za-z0-9]{20,}", _HIDDEN),  # tokens of Hugging Face
    (r"\bAKIA[0-9A-Z]{16}\b", _HIDDEN),
    (r"(?<=://)[^/\s:@]*:[^/\s@]+@", f"{_HIDDEN}@"),  # user:password@host
    (
        r"(?i)([?&;](?:x-goog-signature|x-goog-credential|x-amz-signature|x-amz-credential|"
        r"x-amz-security-token|signature|sig|token|access_token|key|api_key|upload_id|password)=)"
        r"[^&\s'\"`]+",
        rf"\1{_HIDDEN}",
    ),
    (
        r"(?i)([\"'](?:private_key|private_key_id|access_token|refresh_token|client_secret|"
        r"id_token|assertion)[\"']\s*:\s*)(\"[^\"]*\"|'[^']*')",
        rf'\1"{_HIDDEN}"',
    ),
)
_RULES = [(re.compile(pattern, re.DOTALL), instead) for pattern, instead in _SECRETS]


def redacted(text: str) -> str:
    """Return `text` without tokens, keys, passwords and signatures."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def secrets_in(value: Any, where: str = "") -> Iterator[str]:
    """Yield the dotted keys of a tree (of a config) whose texts hold a secret."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from secrets_in(one, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from secrets_in(one, f"{where}[{index}]")
    elif isinstance(value, str) and redacted(value) != value:
        yield where
