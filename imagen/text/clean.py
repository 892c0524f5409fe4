"""Caption cleaning. The default keeps whatever may have a meaning; `web` is for scraped alt texts.

DeepFloyd IF's cleaning (deep-floyd/IF, deepfloyd_if/modules/t5.py, `clean_caption`) is what most
open models copied. It strips URLs and HTML as `web` does here, but it also lower-cases and deletes
Chinese characters, numbers of six digits, `#7`, brackets, `3x4` and words such as `download`, so
that `C++ vs C#` becomes `c vs c`. Whatever a person may have meant stays here.
"""

import html
import html.entities
import re
import unicodedata
from typing import Literal

Cleaning = Literal["light", "none", "web"]
VERSIONS: dict[str, int | str] = {"light": 1, "none": "none", "web": "web/2"}
"""Part of an encoder's fingerprint; raise one when what that cleaning does changes."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\ufeff]+")
_PERSON = re.compile("<person>", re.IGNORECASE)
_ENTITY = re.compile(r"&(#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]*);", re.IGNORECASE)
"""With its semicolon: without one `R&D` and `?a=1&copy=2` would be entities as well."""
_ELEMENTS = (
    "a|abbr|b|big|blockquote|body|br|center|cite|code|dd|del|div|dl|dt|em|font|h[1-6]|hr|html|i|"
    "iframe|img|input|ins|li|nobr|ol|p|pre|q|s|script|small|span|strike|strong|style|sub|sup|table|"
    "tbody|td|th|thead|tr|tt|u|ul|var|wbr"
)
_TAG = re.compile(
    rf"<!--(?:(?!<!--).)*?-->|<!doctype[^<>]*>|</?(?:{_ELEMENTS})(?:\s+[\w:-]+\s*=[^<>]*)?\s*/?>",
    re.DOTALL | re.IGNORECASE,
)
"""Of elements that stand in alt texts, bare or with attributes: `vector<int>`, `<smiling>` and
`a<b and c>d` are text; a lone `<b>` or `List<a>` is taken for one.
"""
_URL = re.compile(r"\b(?:https?://|www\.)[^\s<>\"'()\[\]]+", re.IGNORECASE)
_FILE = re.compile(r"([^\s/\\]+)\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg)", re.IGNORECASE)
_CAMERA = re.compile(r"(?:img|dsc[nf]?|pict)[-_ ]?\d{3,}[-_\d]*|[\W\d_]*", re.IGNORECASE)


def clean(caption: str, cleaning: Cleaning = "light") -> str:
    """Return a caption as the tokenizer gets it; cleaning it again changes nothing.

    light: NFC, control characters and runs of white space made one space.
    none: as it is.
    web: light, and without HTML entities, tags and URLs; a caption that is the name of a picture
    file becomes its words, or empty when a camera numbered it (`IMG_1234.JPG`); `<PERSON>`, which
    Conceptual 12M (arXiv:2102.08981) has for names, becomes `person`.
    """
    if cleaning == "none":
        return caption
    text = _light(caption)
    while cleaning == "web" and (less := _light(_web(text))) != text:
        text = less  # entities are found escaped twice, tags within tags
    return text


def _light(caption: str) -> str:
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", caption)).split())


def _character(entity: re.Match[str]) -> str:
    known = entity[1][0] == "#" or f"{entity[1]};" in html.entities.html5
    return html.unescape(entity[0]) if known else entity[0]


def _web(caption: str) -> str:
    text = _PERSON.sub("person", _ENTITY.sub(_character, caption))
    text = _light(_URL.sub(" ", _TAG.sub(" ", text)))
    file = _FILE.fullmatch(text)
    stem = text if file is None else file[1]
    if _CAMERA.fullmatch(stem) and (file is not None or stem[:1].isalpha()):
        return ""
    return text if file is None else re.sub(r"[-_+]+|%20", " ", stem)
