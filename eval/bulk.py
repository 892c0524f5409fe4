"""Thousands of prompts to pictures: tar shards or PNG files, by many workers, resumable.

```
<out>/request.json           what was asked for, written first: another request is refused
<out>/<shard, 5 digits>.tar  WebDataset samples, key = number of the image: .png, .txt, .json
<out>/<number, 9 digits>.png or one file an image; its prompt and seed are line `number` of
<out>/images.jsonl           {"prompt", "seed"} of each image, in order
<out>/manifest.json          written last: sizes and checksums of all files
```
A shard is a pure function of cascade, prompts, seeds and options: done again it is the same bytes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from eval.prompts import Item
from imagen import manifest, picture, storage
from imagen.cascade import Cascade, SampleOptions
from imagen.config import to_tree
from imagen.data.images import to_uint8
from imagen.data.tars import write_tar
from imagen.errors import StorageError

Kind = Literal["tar", "png"]
REQUEST, LINES, MANIFEST, KIND = "request.json", "images.jsonl", "manifest.json", "samples"
BATCH_IMAGES = 16
"""Images sampled at a time. It decides memory and speed, never a picture."""
READ_AT_ONCE = 8
"""Files read at once for their checksums: a bucket takes its time for each."""


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that decides the pictures, and how they are stored."""

    cascade: str
    """Fingerprint."""
    items: tuple[Item, ...]
    options: SampleOptions
    kind: Kind
    shard_images: int

    @property
    def body(self) -> dict[str, Any]:
        """The request as it is stored; prompts by their digest."""
        lines = json.dumps([[item.prompt, item.seed] for item in self.items])
        return {
            "format": "imagen/samples-request/1",
            "cascade": self.cascade,
            "prompts": hashlib.sha256(lines.encode()).hexdigest()[:16],
            "images": len(self.items),
            "options": to_tree(self.options),
            "kind": self.kind,
            "shard_images": self.shard_images,
        }

    def packs(self, folder: str) -> "list[Pack]":
        """Return the tasks: the images of one shard each."""
        starts = range(0, len(self.items), self.shard_images)
        return [
            Pack(folder, number, start, self.items[start : start + self.shard_images],
                 self.options, self.kind)
            for number, start in enumerate(starts)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pack:
    """The images of one shard."""

    folder: str
    number: int
    first: int
    """Number of its first image."""
    items: tuple[Item, ...]
    options: SampleOptions
    kind: Kind

    @property
    def names(self) -> list[str]:
        """Its files."""
        if self.kind == "tar":
            return [f"{self.number:05d}.tar"]
        return [f"{self.first + i:09d}.png" for i in range(len(self.items))]

    def make(self, cascade: Cascade) -> int:
        """Sample and publish; return how many images it has."""
        if self.kind == "tar":
            samples = [
                (f"{number:09d}", {"png": png, "txt": item.prompt.encode(), "json": _facts(item)})
                for number, item, png in self._drawn(cascade, range(len(self.items)))
            ]
            storage.put(storage.join(self.folder, self.names[0]), write_tar(samples))
            return len(self.items)
        there = storage.sizes(self.folder)
        left = [i for i, name in enumerate(self.names) if name not in there]
        for number, _, png in self._drawn(cascade, left):
            storage.put(storage.join(self.folder, f"{number:09d}.png"), png)
        return len(self.items)

    def _drawn(self, cascade: Cascade, numbers: Sequence[int]) -> Iterator[tuple[int, Item, bytes]]:
        """Yield number, item and PNG of the last member's images."""
        for start in range(0, len(numbers), BATCH_IMAGES):
            batch = numbers[start : start + BATCH_IMAGES]
            items = [self.items[i] for i in batch]
            made = cascade.sample([i.prompt for i in items], [i.seed for i in items], self.options)
            last = to_uint8(list(made.values())[-1]).permute(0, 2, 3, 1).cpu().numpy()
            for i, item, image in zip(batch, items, last, strict=True):
                yield self.first + i, item, picture.png(picture.exact(image))


def _facts(item: Item) -> bytes:
    return json.dumps({"prompt": item.prompt, "seed": item.seed}).encode()


def begin(folder: str, order: Order) -> list[Pack]:
    """Return the packs that are left to do. Raises StorageError for a folder of another request."""
    path = storage.join(folder, REQUEST)
    text = json.dumps(order.body, indent=1).encode() + b"\n"
    if not storage.put(path, text, if_absent=True) and storage.get(path) != text:
        raise StorageError(
            f"`{folder}` holds samples of another request (`{path}`)",
            "choose another --out, or repeat the command that began it",
        )
    there = storage.sizes(folder)
    return [pack for pack in order.packs(folder) if not set(pack.names) <= set(there)]


def finish(folder: str, order: Order) -> None:
    """Write the list of images and the manifest, unless they are there."""
    path = storage.join(folder, MANIFEST)
    if manifest.read_if_complete(path, KIND, storage.sizes(folder)) is not None:
        return
    lines = b"".join(_facts(item) + b"\n" for item in order.items)
    files = manifest.put_files(folder, {LINES: lines})
    names = [name for pack in order.packs(folder) for name in pack.names]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        entries = pool.map(lambda name: _entry(storage.join(folder, name)), names)
        files |= dict(zip(names, entries, strict=True))
    manifest.write(path, KIND, {**order.body, "format": f"imagen/{KIND}/1", "files": files})


def _entry(path: str) -> dict[str, Any]:
    data = storage.get(path)
    return {"bytes": len(data), "crc32c": storage.crc32c(data)}
