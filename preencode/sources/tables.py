"""Lists of images with captions: two columns of a parquet, CSV, TSV or JSON-lines file."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from imagen import storage
from imagen.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
CAPTIONS = ("caption", "text")
"""Names of the caption column, the first that is there; upper case is the same."""

_CELL_BYTES = 1 << 24
"""Most characters of a CSV cell; 131,072 is what Python takes by itself."""
_PLACE = re.compile(
    r"https?://\S+|\S.*\.(jpe?g|png|webp|gif|bmp|tiff?|ppm|avif)", re.IGNORECASE | re.DOTALL
)
_PIECE = 1 << 16

Pair = tuple[bytes | None, bytes | None]


@dataclass(frozen=True, slots=True)
class Table:
    """A list: where each image is, and its caption; None where a row lacks one."""

    images: "pa.ChunkedArray"
    captions: "pa.ChunkedArray"
    digest: str
    """Of the file."""

    def __len__(self) -> int:
        return len(self.images)

    def pairs(self, rows: Sequence[int]) -> Iterator[Pair]:
        """Yield (image, caption) of the given rows."""
        import pyarrow as pa

        wanted = pa.array(rows, pa.int64())
        images, captions = self.images.take(wanted), self.captions.take(wanted)
        yield from zip(images.to_pylist(), captions.to_pylist(), strict=True)


def read_table(path: str, image_columns: Sequence[str], caption_column: str) -> Table:
    """Read a list. Raises ConfigError when it is damaged or lacks a column, StorageError."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"`{path}` is no list: its name does not end in {', '.join(SUFFIXES)}",
            "give a list with the columns `url` and `caption`",
        )
    data = storage.get(path)
    wanted = (tuple(image_columns), (caption_column,) if caption_column else CAPTIONS)
    read = {".parquet": _parquet, ".jsonl": _jsonl}.get(suffix, _csv)
    images, captions = read(data, wanted, path)
    return Table(images, captions, hashlib.sha256(data).hexdigest()[:32])


def suffix_of(path: str) -> str:
    """Return the suffix of a file's name in lower case, with its dot; empty without one."""
    stem, dot, suffix = storage.name(path).rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def find_column(names: Sequence[str], wanted: Sequence[str], where: str, key: str) -> str:
    """Return the first of the wanted columns that is there. Raises ConfigError."""
    lower = {name.lower(): name for name in reversed(names)}
    for name in wanted:
        if name in names or name.lower() in lower:
            return name if name in names else lower[name.lower()]
    raise ConfigError(
        f"`{where}` has no column {' or '.join(f'`{name}`' for name in wanted)}; it has "
        f"{', '.join(f'`{name}`' for name in names) or 'none'}",
        f"say which one to take: source.{key}=NAME",
    )


def _columns(names: Sequence[str], wanted: tuple, where: str) -> tuple[str, str]:
    image = find_column(names, wanted[0], where, "image_column")
    return image, find_column(names, wanted[1], where, "caption_column")


def _arrays(pairs: Iterable[Pair]) -> tuple[Any, Any]:
    import pyarrow as pa

    pairs, kind = iter(pairs), pa.large_binary()
    images, captions = [], []
    while piece := list(islice(pairs, _PIECE)):
        images.append(pa.array([image for image, _ in piece], kind))
        captions.append(pa.array([caption for _, caption in piece], kind))
    return pa.chunked_array(images, kind), pa.chunked_array(captions, kind)


def _parquet(data: bytes, wanted: tuple, where: str) -> tuple[Any, Any]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        names = _columns(file.schema_arrow.names, wanted, where)
        table = file.read(columns=list(dict.fromkeys(names)))
        return _binary(table[names[0]], names[0], where), _binary(table[names[1]], names[1], where)
    except (pa.ArrowException, OSError) as err:
        raise ConfigError(f"`{where}` is no readable parquet file: {err}") from err


def _binary(column: Any, name: str, where: str) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    if not any(test(column.type) for test in (*texts, pa.types.is_large_binary, pa.types.is_null)):
        raise ConfigError(f"`{where}`: column `{name}` is {column.type}, not text")
    return column.cast(pa.large_binary())


def _csv(data: bytes, wanted: tuple, where: str) -> tuple[Any, Any]:
    """Read CSV, or TSV, which knows no quotes: they are part of a field there."""
    tabs = suffix_of(where) == ".tsv"
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
    reader = csv.reader(text, **style)
    usual = csv.field_size_limit(_CELL_BYTES)
    try:
        header = next(reader, [])
        image, caption = (header.index(n) for n in _columns(header, wanted, where))
        return _arrays(_cells(reader, len(header), image, caption))
    except csv.Error as err:
        raise ConfigError(
            f"`{where}` line {reader.line_num} is no CSV: {err}",
            "look for a quote that is not closed before it",
        ) from err
    finally:
        csv.field_size_limit(usual)


def _cells(reader: Any, width: int, image: int, caption: int) -> Iterator[Pair]:
    """Yield the cells of each row; a pair of None for each line that an open quote swallowed."""
    line = reader.line_num
    for cells in reader:
        lines, line = reader.line_num - line, reader.line_num
        if lines > 1 and any(_swallowed(cell) for cell in cells):
            yield from [(None, None)] * lines
        elif len(cells) == width:
            yield tuple(cells[at].encode("utf8", "surrogateescape") for at in (image, caption))  # type: ignore[misc]
        elif cells:
            yield None, None  # which cell is which is not known


def _swallowed(cell: str) -> bool:
    """Tell whether a line of a cell is a row of the list: the quote before it was left open."""
    return any(
        len(parts) > 1 and any(_PLACE.fullmatch(part.strip(' "\r')) for part in parts)
        for parts in (line.split(",") for line in cell.split("\n")[1:])
    )


def _jsonl(data: bytes, wanted: tuple, where: str) -> tuple[Any, Any]:
    """Read JSON lines twice, so that what is in other columns is never held."""
    names = list(dict.fromkeys(name for found in _objects(data) for name in found))
    image, caption = _columns(names, wanted, where)
    return _arrays((_text(found.get(image)), _text(found.get(caption))) for found in _objects(data))


def _objects(data: bytes) -> Iterator[dict[str, Any]]:
    return (_object(line) for line in io.BytesIO(data) if line.strip())


def _object(line: bytes) -> dict[str, Any]:
    """Return a line's object; an empty one for what is none, so that the row is told as bad."""
    try:
        found = json.loads(line.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> bytes | None:
    """Return the bytes of a JSON string; half of a surrogate pair gives bytes that are no UTF-8."""
    if not isinstance(value, str):
        return None
    try:
        return value.encode("utf8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf8", "surrogatepass")
