"""What pages are made of: one self-contained file for phone and desk, by day and by night."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent


def whole(title: str, lead: str, sections: Sequence[str]) -> str:
    """Return a complete page. `title` and `lead` are plain text, `sections` are HTML."""
    style = (HERE / "page.css").read_text(encoding="utf8")
    body = "\n".join(section for section in sections if section)
    script = (HERE / "page.js").read_text(encoding="utf8") if "data-slider" in body else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</main>'
        + (f"<script>\n{script}</script>" if script else "")
        + "</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a section with a heading, or nothing where it has no parts."""
    inner = "".join(part for part in parts if part)
    if not inner:
        return ""
    return f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>{inner}</section>'


def anchor(title: str) -> str:
    """Return the id of a section."""
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")


def tile(name: str, value: str, *notes: tuple[str, str]) -> str:
    """Return a key figure; all is plain text. `notes`: (text, class: good, bad or none)."""
    small = "".join(
        f'<small class="{kind}">{escape(text)}</small>'
        if kind
        else f"<small>{escape(text)}</small>"
        for text, kind in notes
        if text
    )
    top = f'<span class="quiet">{escape(name)}</span><b>{escape(value)}</b>'
    return f'<div class="tile">{top}{small}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], told: str = "table") -> str:
    """Return a table; `head` and `told`, its name, are plain text, cells are HTML."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    body = "".join(f"<tr>{_row(row)}</tr>" for row in rows)
    return scrolling(f"<table>{top}<tbody>{body}</tbody></table>", told)


def _row(row: Sequence[str]) -> str:
    """Return the cells of a row; a long title is the first to be broken where there is no room."""
    first, rest = row[0], row[1:]
    title = f'<td class="title">{first}</td>' if len(first) > 20 and "<" not in first else ""
    return (title or _cell(first)) + "".join(map(_cell, rest))


def _cell(html: str) -> str:
    return (
        f'<td class="text">{html}</td>'
        if len(html) > 90 and "<" not in html
        else f"<td>{html}</td>"
    )


def scrolling(html: str, told: str) -> str:
    """Return a box in which something wide can be moved sideways, also by keys."""
    name = escape(told, quote=True)
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}">{html}</div>'


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def figure(title: str, inner: str, note: str = "") -> str:
    """Return a titled chart or picture; `title` and `note` are plain text."""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(title)}</h3>{inner}{caption}</figure>"


def folded(title: str, inner: str) -> str:
    """Return what is shown when its title is pressed."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def image(data: bytes, alt: str, kind: str, more: str = "") -> str:
    """Return an image that lies in the page itself. `kind`: its class; `more`: HTML attributes."""
    uri = f"data:{_mime(data)};base64,{base64.b64encode(data).decode()}"
    told = escape(alt, quote=True)
    return f'<img class="{kind}" alt="{told}" src="{uri}"{" " + more if more else ""}>'


def _mime(data: bytes) -> str:
    if data[:4] == b"RIFF":
        return "image/webp"
    return "image/png" if data[:4] == b"\x89PNG" else "image/jpeg"
