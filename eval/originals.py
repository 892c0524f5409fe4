"""Real images and captions from wherever they are, one after another: data set, tars, folder."""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from eval.features import evenly
from imagen import manifest, storage
from imagen.data import tars
from imagen.data.prepared import Prepared, Split
from imagen.data.samples import IMAGE_EXTENSIONS, Bad, examine, read_caption
from imagen.errors import ShardError, StorageError

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 8
"""Files of a folder that are read at once."""


@dataclass(frozen=True, slots=True)
class Original:
    """One image as it is stored, and its caption if it has one."""

    name: str
    data: bytes
    caption: str | None


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """Splits of a prepared data set, all of their images or an even selection."""

    prepared: Prepared
    splits: tuple[Split, ...]
    most: int | None = None

    @property
    def what(self) -> str:
        """What the images are, for people."""
        split = {"train": "training", "heldout": "held-out"}[self.splits[0]]
        return f"{'all' if len(self.splits) > 1 else split} images of the data set"

    @property
    def identity(self) -> str:
        """Text that changes when other images are read."""
        return f"{self.prepared.fingerprint} {' '.join(self.splits)} {self.most}"

    def read(self, bad: Counter[str], pictures: bool = True) -> Iterator[Original]:
        """Yield the images in order; `bad` counts nothing: what cannot be used was left out.

        Without `pictures` they have no data, but captions.
        """
        del bad
        for shard, row in self._places():
            caption = self.prepared.caption(shard, row)
            key = self.prepared.key(shard, row)
            data = self.prepared.image(shard, row) if pictures else b""
            yield Original(key, data, caption)

    def _places(self) -> list[tuple[int, int]]:
        found = [
            (shard, int(row))
            for shard in range(len(self.prepared.shards))
            for split in self.splits
            for row in self.prepared.rows(shard, split)
        ]
        return found if self.most is None else evenly(found, self.most)


@dataclass(frozen=True, slots=True)
class TarSource:
    """WebDataset tars of a folder or URL, or one tar."""

    path: str

    @property
    def what(self) -> str:
        """What the images are, for people."""
        return f"images of the tars `{self.path}`"

    @property
    def identity(self) -> str:
        """Text that changes when other images are read."""
        return manifest.fingerprint([[tar.path, tar.version] for tar in self._tars()])

    def _tars(self) -> list[tars.Tar]:
        if self.path.endswith(".tar"):
            return [tars.Tar(self.path, storage.version(self.path))]
        return tars.list_tars(self.path)

    def read(self, bad: Counter[str], pictures: bool = True) -> Iterator[Original]:
        """Yield the images in order; `bad` counts those left out, by reason.

        A tar is read whole: `pictures` saves nothing.
        """
        del pictures
        for tar in self._tars():
            buffer = tars.open_tar(tar.path)
            members = tars.list_members(buffer, tar.path).members
            for sample in examine(buffer, members):
                if isinstance(sample, Bad):
                    bad[sample.reason] += 1
                    continue
                start = sample.image.offset
                data = buffer[start : start + sample.image.size]
                yield Original(sample.key, data, sample.text)


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Image files of a folder or URL; a caption is a `.txt` of the same name."""

    path: str

    @property
    def what(self) -> str:
        """What the images are, for people."""
        return f"images of the folder `{self.path}`"

    @property
    def identity(self) -> str:
        """Text that changes when other images are read."""
        files = storage.scan(self.path)
        return manifest.fingerprint([[name, entry.version] for name, entry in files.items()])

    def read(self, bad: Counter[str], pictures: bool = True) -> Iterator[Original]:
        """Yield the images by name, read ahead; `bad` counts captions that cannot be read.

        Without `pictures` they have no data, but captions.
        """
        names = storage.listdir(self.path)
        there = set(names)
        work = (
            (stem, name if pictures else "", f"{stem}.txt" if f"{stem}.txt" in there else "")
            for name in names
            for stem, _, extension in [name.rpartition(".")]
            if extension.lower() in IMAGE_EXTENSIONS
        )
        for stem, data, text in _read_ahead(self._files, work):
            yield Original(stem, data, None if text is None else _caption(text, bad))

    def _files(self, one: tuple[str, str, str]) -> tuple[str, bytes, bytes | None]:
        stem, image, text = one
        data = storage.get(storage.join(self.path, image)) if image else b""
        return stem, data, storage.get(storage.join(self.path, text)) if text else None


def _caption(data: bytes, bad: Counter[str]) -> str | None:
    with contextlib.suppress(UnicodeError):
        return read_caption(data, False)
    bad["caption not UTF-8"] += 1
    return None


def _read_ahead(read: Callable[[T], R], work: Iterable[T]) -> Iterator[R]:
    """Yield what `read` makes of each, in order, some being read while others are used."""
    left, under_way = iter(work), deque[Future[R]]()
    with ThreadPoolExecutor(_THREADS, "originals") as pool:
        try:
            under_way.extend(pool.submit(read, one) for one in islice(left, 2 * _THREADS))
            while under_way:
                found = under_way.popleft().result()
                under_way.extend(pool.submit(read, one) for one in islice(left, 1))
                yield found
        finally:  # what nobody wants any more is not read
            pool.shutdown(wait=False, cancel_futures=True)


Source = PreparedSource | TarSource | FolderSource


def find(path: str) -> Source:
    """Return what a path is: tars, or a folder of images. Raises ShardError, StorageError."""
    if path.endswith(".tar"):
        return TarSource(path)
    names = storage.listdir(path)
    if any(name.endswith(".tar") for name in names):
        return TarSource(path)
    if any(name.lower().endswith(tuple(f".{e}" for e in IMAGE_EXTENSIONS)) for name in names):
        return FolderSource(path)
    if not names:
        raise StorageError(
            f"`{path}` is no folder with files in it",
            "give a config (.yaml), a folder or URL of tars or images, or one .tar",
        )
    raise ShardError(
        f"`{path}` has {len(names)} files, none of which is a .tar or an image",
        f"images end with .{', .'.join(IMAGE_EXTENSIONS)}; folders in it are not looked into",
    )
