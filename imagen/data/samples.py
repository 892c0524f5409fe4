"""From the files of a tar to samples: an image and a caption under one key, or the reason why not.

Samples that cannot be used are left out here, once, and counted by reason, so that training never
meets them: `no_image`, `bad_image`, `image_size`, `no_caption`, `caption_size`, `non_utf8`,
`duplicate_key`, `key_size`. Members whose names give no key are counted, too: `no_extension`,
`hidden`.
"""

import io
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from imagen.data.tars import Buffer, Member, split_name

FORMATS = ("JPEG", "PNG", "WEBP")
"""What is read as an image, whatever its name: Pillow's EPS plugin, for one, runs Ghostscript."""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SMALLEST_PX = 4
"""Shorter side of an image; scraped sets hold tracking pixels and rules of 1 px."""
LARGEST_PIXELS = Image.MAX_IMAGE_PIXELS or 0
"""89 million: above it Pillow takes an image for a decompression bomb. 8 bits RGB are 268 MB."""
LARGEST_KEY_BYTES = 1024
"""Keys are stored at one width, that of the longest."""
LARGEST_CAPTION_BYTES = 64 * 1024
"""A longer one is no caption, but a page that got into its place; T5 reads 128 tokens of it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A usable sample: where its image and caption are, its caption, its size in pixels."""

    key: str
    image: Member
    caption: Member
    caption_is_json: bool
    text: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that cannot be used."""

    key: str
    reason: str
    detail: str


class _BadSampleError(Exception):
    """Carries (reason, detail) out of the checks of one sample."""


def read_caption(raw: bytes, is_json: bool) -> str:
    """Return the caption of a `.txt` member, or of img2dataset's `.json`.

    Raises UnicodeError when it is or cannot be UTF-8, ValueError when the JSON holds no caption.
    """
    text = raw.decode("utf8")
    if is_json:
        try:
            body = json.loads(text)
        except RecursionError:
            raise ValueError("the .json is nested too deeply") from None
        text = body.get("caption") if isinstance(body, dict) else None
        if not isinstance(text, str):
            raise ValueError("the .json has no `caption`")
        text.encode("utf8")  # JSON can escape half of a surrogate pair
    return text.strip()


def examine(tar: Buffer, members: Iterable[Member]) -> list[Sample | Bad]:
    """Return the samples of a tar in the order in which their keys first appear."""
    members = list(members)
    found: list[Sample | Bad] = [bad for member in members if (bad := _without_key(member))]
    for key, (parts, repeats) in _group(members).items():
        try:
            found.append(_sample(tar, key, parts))
        except _BadSampleError as err:
            found.append(Bad(key, *err.args))
        found.extend(
            Bad(key, "duplicate_key", f"a second `{member.name}` at byte {member.offset}")
            for member in repeats
        )
    return found


def _without_key(member: Member) -> Bad | None:
    if split_name(member.name) is not None:
        return None
    hidden = member.name.rpartition("/")[2].startswith(".")
    return Bad(member.name, "hidden" if hidden else "no_extension", f"at byte {member.offset}")


def _group(members: Iterable[Member]) -> dict[str, tuple[dict[str, Member], list[Member]]]:
    """Group members by key: {extension: member}, and one member for each repeat of the key.

    From the first extension that comes again, all members of a key are of repeats: what stands
    between two samples of one key is not known to belong to the first.
    """
    groups: dict[str, tuple[dict[str, Member], list[Member]]] = {}
    repeat: dict[str, set[str]] = {}  # key -> extensions of its last repeat
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, extension = split
        parts, repeats = groups.setdefault(key, ({}, []))
        if not repeats and extension not in parts:
            parts[extension] = member
        elif not repeats or extension in repeat[key]:
            repeats.append(member)
            repeat[key] = {extension}
        else:  # jpg + txt again are one repeat, not two
            repeat[key].add(extension)
    return groups


def _sample(tar: Buffer, key: str, parts: dict[str, Member]) -> Sample:
    if (size := len(key.encode("utf8", "surrogateescape"))) > LARGEST_KEY_BYTES:
        raise _BadSampleError("key_size", f"{size:,} bytes")
    image = next((parts[e] for e in IMAGE_EXTENSIONS if e in parts), None)
    if image is None:
        raise _BadSampleError("no_image", f"only .{', .'.join(sorted(parts))}")
    is_json = "txt" not in parts
    caption = parts.get("json" if is_json else "txt")
    if caption is None:
        raise _BadSampleError("no_caption", f"only .{', .'.join(sorted(parts))}")
    text = _caption(_data(tar, caption), is_json)
    width, height = _dimensions(_data(tar, image))
    return Sample(key, image, caption, is_json, text, width, height)


def _data(tar: Buffer, member: Member) -> bytes:
    return tar[member.offset : member.offset + member.size]


def _caption(raw: bytes, is_json: bool) -> str:
    try:
        text = read_caption(raw, is_json)
    except UnicodeError as err:
        raise _BadSampleError("non_utf8", str(err)) from None
    except ValueError as err:
        raise _BadSampleError("no_caption", str(err)) from None
    if (size := len(text.encode("utf8"))) > LARGEST_CAPTION_BYTES:
        raise _BadSampleError("caption_size", f"{size:,} bytes")
    return text


def _dimensions(data: bytes) -> tuple[int, int]:
    """Return (width, height) from the image's header, without decoding it."""
    bomb = Image.DecompressionBombWarning, Image.DecompressionBombError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except bomb:
        raise _BadSampleError("image_size", f"more than {LARGEST_PIXELS:,} pixels") from None
    except Exception as err:  # hostile bytes raise anything in Pillow's plugins
        detail = str(err).partition(" <_io")[0]  # Pillow adds a memory address
        raise _BadSampleError("bad_image", f"{detail} ({len(data)} bytes)") from None
    if min(width, height) < SMALLEST_PX:
        raise _BadSampleError("image_size", f"{width}x{height} px")
    return width, height
