"""A Hugging Face dataset, by its name on the hub or from a local folder, streamed in its order."""

import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from imagen import storage
from imagen.errors import ConfigError, StorageError
from preencode.sources import images, listing, rows, tables
from preencode.sources.config import SourceConfig
from preencode.sources.rows import Bad, BadRowError, Row, Sample, Slice

_SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` leaves in the root of a folder."""
_ARCHIVE = re.compile(r"(zip|tar|gzip|bz2|lz4|xz|zstd)://.*", re.DOTALL)
"""What may stand before the last `::` of an address: a member of what follows, which is checked."""


class HubSource:
    """The rows of one split; the end of a stream of unknown length shows while reading."""

    def __init__(self, config: SourceConfig, seed: int) -> None:
        del seed  # a stream keeps its order
        self._config = config
        datasets = _library()
        self._local = os.path.isdir(config.path)
        if not self._local and config.path.startswith((".", "/", "~")):
            raise ConfigError(f"there is no folder `{config.path}`", "or give a name on the hub")
        self.listing, self._commit = self._identify()
        data = _explained(config, lambda: self._open(datasets))
        names = list(_explained(config, lambda: data.column_names or next(iter(data))))
        self._image = tables.find_column(
            names, [config.image_column or "image"], config.path, "image_column"
        )
        captions = [config.caption_column] if config.caption_column else tables.CAPTIONS
        self._caption = tables.find_column(names, captions, config.path, "caption_column")
        self._data = _undecoded(datasets, data, self._image).select_columns(
            list(dict.fromkeys([self._image, self._caption]))
        )
        self._stream: Iterator[Mapping[str, Any]] = iter(())
        self._at: int | None = None
        self.title = f"dataset {config.path}, split {config.split}"
        self.rows = _known_rows(data, config)
        self.size_bytes = None
        self.ignored: Mapping[str, int] = {}

    def _identify(self) -> tuple[str, str | None]:
        """Return (identity of the content, commit): the commit, or the files of a folder."""
        config = self._config
        if self._local:
            return listing.digest(listing.files_below(config.path)), None
        commit = _explained(config, lambda: _commit(config))
        return commit, commit

    def _open(self, datasets: Any) -> Any:
        """Return the split as a stream."""
        config = self._config
        if self._local and any(os.path.exists(os.path.join(config.path, n)) for n in _SAVED):
            return _saved(datasets.load_from_disk(config.path), config).to_iterable_dataset()
        return datasets.load_dataset(
            config.path,
            name=config.subset or None,
            split=config.split,
            revision=self._commit,
            streaming=True,
        )

    def slices(self) -> Iterator[Slice]:
        """Cut the stream into slices of one length; what is told of its own length may be wrong."""
        return rows.equal_slices(self._config.samples, self._config.shard_samples)

    def read(self, part: Slice) -> Iterator[Row]:
        """Yield the rows of a slice, going on where the last one ended if that is its start."""
        if self._at != part.start:
            self._stream = iter(self._data.skip(part.start) if part.start else self._data)
        self._at = None  # not known, should the reader stop in mid-slice
        source = _explained_rows(self._config, islice(self._stream, len(part)))
        for row, record in enumerate(source, part.start):
            try:
                yield self._sample(row, record)
            except BadRowError as err:
                yield Bad(row, f"row {row}", *err.args)
        self._at = part.stop
        if part.stop == self._config.samples:
            self._stream = iter(())  # lets go of the files that are still open

    def _sample(self, row: int, record: Mapping[str, Any]) -> Sample:
        text = record[self._caption]
        if text is not None and not isinstance(text, str):
            raise BadRowError("no_caption", f"`{self._caption}` is no text: {text!r:.100}")
        caption = rows.caption_text(None if text is None else text.encode("utf8", "surrogatepass"))
        root = self._config.path if self._local else None
        data, file = _image_bytes(record[self._image], self._image, root)
        extension, data = images.stored(data)
        about = {"row": row} if file is None else {"row": row, "file": file}
        return Sample(
            rows.key_of(row),
            {extension: data, "txt": caption.encode("utf8"), "json": json.dumps(about).encode()},
        )


def _saved(data: Any, config: SourceConfig) -> Any:
    """Return the split of what `save_to_disk` wrote: of one split, or of several."""
    if not isinstance(data, Mapping):
        data = {str(data.split or config.split): data}
    if config.split in data:
        return data[config.split]
    raise ConfigError(
        f"`{config.path}` has no split {config.split!r}; it has {', '.join(data)}",
        "say which one to take: source.split=NAME",
    )


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as err:
        raise ConfigError(
            f"source `hub` needs the package `datasets`, which does not load: {err}",
            "pip install 'imagen-cascade[hub]', or `pip install datasets`",
        ) from err


def _commit(config: SourceConfig) -> str:
    """Return the commit of a dataset on the hub, so that a rerun reads the same rows."""
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(config.path, revision=config.revision or None, timeout=20).sha
    assert commit, "the hub says no commit of a dataset"
    return commit


def _explained(config: SourceConfig, work: Any) -> Any:
    """Do `work` and turn what the libraries raise into an error that says what to do."""
    try:
        return work()
    except (ConfigError, StorageError, AssertionError):
        raise
    except (ValueError, KeyError, FileNotFoundError) as err:
        hint = "check source.path, source.subset, source.split and source.revision"
        raise ConfigError(f"cannot open dataset `{config.path}`: {_told(err)}", hint) from err
    except Exception as err:  # httpx, huggingface_hub and fsspec have errors of their own
        raise StorageError(
            f"cannot read dataset `{config.path}`: {_told(err)}",
            "check the name and the network; a private one needs `hf auth login`; a copy on this "
            "machine can be given as source.path; what is imported stays",
        ) from err


def _explained_rows(config: SourceConfig, stream: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    end = object()
    while (record := _explained(config, lambda: next(stream, end))) is not end:
        yield record


def _told(err: Exception) -> str:
    text = str(err).strip().splitlines() or [""]
    return f"{type(err).__name__}: {text[0]}"


def _undecoded(datasets: Any, data: Any, column: str) -> Any:
    """Return the stream with images as the bytes that are stored."""
    kind = (data.features or {}).get(column)
    if kind is None or isinstance(kind, datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    return data


def _image_bytes(value: Any, column: str, root: str | None) -> tuple[bytes, str | None]:
    """Return (bytes, name of the file) of a cell; `root`: folder of a dataset on this machine."""
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, Mapping):
        raise BadRowError("no_image", f"`{column}` is no image: {value!r:.100}")
    path, data = value.get("path"), value.get("bytes")
    if data is None and path is None:
        raise BadRowError("no_image", f"`{column}` is empty")
    if data is None:
        place = _checked(str(path), root)
        if root is None:
            data = _fetched(place)
        else:
            with listing.one_file(root):
                data = _fetched(place)
    return data, storage.name(path.partition("::")[0]) if path else None


def _checked(path: str, root: str | None) -> str:
    """Return where an image is read from: the hub, or below the folder of a local dataset.

    A dataset comes from strangers: its rows may not make this machine read just anything. Of a
    chain (`zip://a::b`) fsspec opens the first link with what follows, unless the first link is
    none of an archive: then that alone. Raises BadRowError.
    """
    *links, place = path.split("::")
    if all(_ARCHIVE.fullmatch(link) for link in links):
        if root is None and place.startswith("hf://"):
            return path
        if root is not None and (real := _below(root, place)) is not None:
            return "::".join([*links, real])
    raise BadRowError("foreign_path", f"`{path}` is no part of the dataset")


def _below(root: str, place: str) -> str | None:
    """Return the real path of a local file if it is below a folder, else None."""
    if not storage.is_local(place) or "\0" in place:
        return None
    real, folder = os.path.realpath(storage.local(place)), os.path.realpath(root)
    is_below = real.startswith(f"{folder.rstrip('/')}/")
    return real if is_below and "::" not in real and "://" not in real else None


def _fetched(path: str) -> bytes:
    """Read an image that a dataset only names, also one inside an archive (`zip://a::b`)."""
    if "::" not in path:
        return storage.get(path)
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read()  # type: ignore[attr-defined]
    except Exception as err:
        raise StorageError(f"cannot read `{path}`: {_told(err)}") from err


def _known_rows(data: Any, config: SourceConfig) -> int | None:
    """Return the number of rows where the dataset tells it."""
    split = (data.info.splits or {}).get(config.split)
    known = split.num_examples if split is not None and split.num_examples else None
    return known if config.samples is None or known is None else min(known, config.samples)
