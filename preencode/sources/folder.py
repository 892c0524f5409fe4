"""A folder of images, with captions beside them or in a `metadata` file.

As in Hugging Face's imagefolder, `metadata.jsonl`, `.csv` or `.parquet` names images relative to
its own folder. An image that none of them names has its caption in a `.txt` of the same stem.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from imagen import storage
from imagen.data.tars import BLOCK
from imagen.errors import ConfigError
from preencode.sources import images, listing, rows, tables
from preencode.sources.config import SourceConfig
from preencode.sources.listing import File
from preencode.sources.rows import Bad, BadRowError, Row, Sample, Slice

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_MEMBERS_BYTES = 7 * BLOCK
"""More of a sample in a tar than its image: three headers, padding, caption, name."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One row: an image and where its caption is, or why it cannot be used."""

    file: str
    size: int
    text: bytes | None = None
    text_file: str | None = None
    bad: tuple[str, str] | None = None


class FolderSource:
    """The images below a folder, sorted by name, then the `metadata` rows that name none."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        self._config = config
        self._path = config.path.rstrip("/")
        found = [f for f in listing.files_below(self._path) if not _is_hidden(f.name)]
        self._entries = _Captions(config, self._path, found).entries()
        if not self._entries:
            raise ConfigError(
                f"no images in `{config.path}`",
                f"an image is a file whose name ends in {', '.join(sorted(images.SUFFIXES))}",
            )
        self._order = rows.seeded_order(len(self._entries), seed)
        self.title = f"folder {config.path}"
        self.listing = listing.digest(found)
        self.rows = len(self._entries)
        self.size_bytes = sum(entry.size for entry in self._entries)
        self.ignored = _ignored(found, self._entries)

    def slices(self) -> Iterator[Slice]:
        """Cut the order by number and by the bytes that the listing tells."""
        start, size = 0, rows.TAR_END_BYTES
        for at, row in enumerate(self._order.tolist()):
            more = self._entries[row].size + _MEMBERS_BYTES
            full = at - start == self._config.shard_samples
            if at > start and (full or size + more > self._config.shard_bytes):
                yield Slice(start, at)
                start, size = at, rows.TAR_END_BYTES
            size += more
        yield Slice(start, len(self._order))

    def read(self, part: Slice) -> Iterator[Row]:
        """Yield the rows of a slice."""
        for row in self._order[part.start : part.stop].tolist():
            entry = self._entries[row]
            try:
                yield self._sample(row, entry)
            except BadRowError as err:
                yield Bad(row, entry.file, *err.args)

    def _sample(self, row: int, entry: _Entry) -> Sample:
        if entry.bad is not None:
            raise BadRowError(*entry.bad)
        raw = entry.text
        if entry.text_file is not None:
            raw = self._get(entry.text_file)
        text = rows.caption_text(raw)
        extension, data = images.stored(self._get(entry.file))
        about = json.dumps({"file": entry.file}).encode()
        return Sample(
            rows.key_of(row), {extension: data, "txt": text.encode("utf8"), "json": about}
        )

    def _get(self, file: str) -> bytes:
        with listing.one_file(self._path):
            return storage.get(storage.join(self._path, file))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _ignored(found: list[File], entries: list[_Entry]) -> dict[str, int]:
    """Count the files that are neither an image, nor a caption of one, nor a list of them."""
    used = {entry.file for entry in entries} | {entry.text_file for entry in entries}
    others = (f for f in found if f.name not in used and storage.name(f.name) not in _METADATA)
    counted = Counter(_kind(file) for file in others)
    return dict(sorted(counted.items()))


def _kind(file: File) -> str:
    if file.version == listing.LINKED_FOLDER:
        return file.version
    return rows.printable(tables.suffix_of(file.name)) or "no suffix"


def _is_picture(file: File) -> bool:
    return tables.suffix_of(file.name) in images.SUFFIXES and file.version != listing.LINKED_FOLDER


class _Captions:
    """Joins the images of a folder with their captions."""

    def __init__(self, config: SourceConfig, path: str, found: list[File]) -> None:
        self._config, self._path, self._found = config, path, found
        self._names = {file.name for file in found}
        self._told: dict[str, bytes | None] = {}
        self._strange: list[_Entry] = []

    def entries(self) -> list[_Entry]:
        """Return all rows: images in the order of their names, then strange `metadata` rows."""
        metadata = [f.name for f in self._found if storage.name(f.name) in _METADATA]
        for name in metadata:
            self._read(name)
        pictures = [f for f in self._found if _is_picture(f)]
        return [*(self._entry(file, bool(metadata)) for file in pictures), *self._strange]

    def _read(self, name: str) -> None:
        """Take the captions of one `metadata` file."""
        table = tables.read_table(
            storage.join(self._path, name),
            [self._config.image_column or "file_name"],
            self._config.caption_column,
        )
        folder = posixpath.dirname(name)
        for at, (image, text) in enumerate(table.pairs(range(len(table)))):
            row = f"{name} row {at}"
            file = _joined(folder, image)
            if file is None:
                self._strange.append(_Entry(row, 0, bad=("bad_row", "it names no file")))
            elif file not in self._names or tables.suffix_of(file) not in images.SUFFIXES:
                self._strange.append(_Entry(row, 0, bad=("missing_file", f"there is no {file!r}")))
            elif file in self._told:
                self._strange.append(_Entry(row, 0, bad=("duplicate_key", f"{file!r} came before")))
            else:
                self._told[file] = text

    def _entry(self, file: File, has_metadata: bool) -> _Entry:
        if file.version == listing.BROKEN_LINK:
            return _Entry(file.name, 0, bad=("missing_file", "the link leads nowhere"))
        if file.version == listing.UNREADABLE:
            return _Entry(file.name, 0, bad=("unreadable_file", "the link cannot be followed"))
        if file.name in self._told:
            return _Entry(file.name, file.size, text=self._told[file.name])
        beside = posixpath.splitext(file.name)[0] + ".txt"
        if beside in self._names:
            return _Entry(file.name, file.size, text_file=beside)
        detail = "no metadata row names it, and " if has_metadata else ""
        return _Entry(file.name, file.size, bad=("no_caption", f"{detail}there is no {beside!r}"))


def _joined(folder: str, image: bytes | None) -> str | None:
    """Return the path that a `metadata` row names, below the root; None when it names none."""
    try:
        name = (image or b"").decode("utf8").strip()
    except UnicodeDecodeError:
        return None
    return posixpath.normpath(posixpath.join(folder, name)) if name else None
