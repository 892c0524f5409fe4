"""What is written: pictures and, beside each, all that is needed to make it again."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen import picture, storage
from imagen.cli.arguments import Wanted
from imagen.errors import ConfigError, StorageError

SLUG_CHARS = 40
READ_AT_ONCE = 8
"""Records read at once: a bucket takes its time for each."""


@dataclass(frozen=True, slots=True)
class Output:
    """One picture file, and which of the images it shows, row by row."""

    path: str
    rows: tuple[tuple[int, ...], ...]
    members: bool
    """Show what every member made, not only the last."""

    @property
    def images(self) -> list[int]:
        """Numbers of the images that it shows."""
        return [i for row in self.rows for i in row]

    @property
    def record(self) -> str:
        """Path of the provenance beside the picture."""
        return self.path.removesuffix(".png") + ".json"


def plan(images: Sequence[Wanted], out: str, count: int, members: bool) -> list[Output]:
    """Return the files to write. Raises ConfigError when `out` is neither PNG nor folder."""
    suffix = re.search(r"\.\w{1,5}$", storage.name(out))
    if out.endswith("/") or not suffix or storage.listdir(out):
        digits = max(3, len(str(len(images) - 1)))
        names = [f"{i:0{digits}d}-{_slug(image.prompt)}.png" for i, image in enumerate(images)]
        return [Output(storage.join(out, name), ((i,),), members) for i, name in enumerate(names)]
    if suffix[0].lower() != ".png":
        raise ConfigError(
            f"--out {out} ends in {suffix[0]}, pictures are written as PNG",
            f"use {out.removesuffix(suffix[0])}.png, or a folder: {out}/",
        )
    rows = [tuple(range(i, i + count)) for i in range(0, len(images), count)]
    return [Output(out, tuple(rows), members)]


def _slug(prompt: str) -> str:
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    return words[:SLUG_CHARS].rstrip("-") or "no-text"


def refuse_overwriting(outputs: Sequence[Output]) -> None:
    """Raise StorageError when a file to write is there already."""
    there = [path for out in outputs for path in (out.path, out.record) if storage.exists(path)]
    if there:
        more = f" and {len(there) - 1} more exist" if len(there) > 1 else " exists"
        raise StorageError(
            f"`{there[0]}`{more} already; nothing was sampled",
            "choose another --out, or say --overwrite",
        )


def check_resumable(outputs: Sequence[Output]) -> None:
    """Raise ConfigError unless every image gets a file of its own."""
    if len(outputs) == 1 and len(outputs[0].images) > 1:
        raise ConfigError(
            f"--resume wants a folder, `{outputs[0].path}` is one grid of all images",
            "use --out FOLDER/",
        )


def left(
    outputs: Sequence[Output], images: Sequence[Wanted], cascade: str, asked: Mapping[str, Any]
) -> list[Output]:
    """Return the outputs that are not there yet.

    `cascade`: its fingerprint; `asked`: what else decides the pictures, as records have it. Raises
    StorageError when what is there was made otherwise.
    """
    folder = os.path.dirname(outputs[0].path) or "."  # of all: each has an image of its own
    sizes = storage.sizes(folder)
    there = [o for o in outputs if {storage.name(o.path), storage.name(o.record)} <= sizes.keys()]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        records = list(pool.map(storage.get, [out.record for out in there]))
    for out, text in zip(there, records, strict=True):
        said = json.loads(text)
        mine = json.loads(record(out, images, asked))
        same = all(said.get(key) == value for key, value in mine.items())
        if not same or said.get("cascade", {}).get("fingerprint") != cascade:
            raise StorageError(
                f"`{out.path}` was made by another command; nothing was sampled",
                "repeat the command that began it, or choose another --out",
            )
    done = {out.path for out in there}
    return [out for out in outputs if out.path not in done]


def draw(
    output: Output, images: Sequence[Wanted], made: Mapping[str, Mapping[int, np.ndarray]]
) -> bytes:
    """Return the PNG of one output: exact pixels of a single image, else a labelled grid."""
    shown = list(made) if output.members else list(made)[-1:]
    if len(output.images) * len(shown) == 1:
        return picture.png(picture.exact(made[shown[0]][output.images[0]]))
    rows = [[made[name][i] for i in row for name in shown] for row in output.rows]
    labels = [images[row[0]].prompt or "(no text)" for row in output.rows]
    seeds = [images[i].seed for i in output.rows[0]]
    prefixes = [f"{name}, " if output.members else "" for name in shown]
    columns = [f"{prefix}seed {seed}" for seed in seeds for prefix in prefixes]
    return picture.png(picture.grid(rows, labels, columns, picture.GridStyle(group=len(shown))))


def record(output: Output, images: Sequence[Wanted], facts: Mapping[str, Any]) -> bytes:
    """Return the provenance JSON of one output: its images, and the facts of the call."""
    body = {
        "format": "imagen/picture/1",
        "images": [{"prompt": images[i].prompt, "seed": images[i].seed} for i in output.images],
        **facts,
    }
    return json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"
