"""The config section `source`: the kind of a source, and what each kind takes."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from imagen.errors import ConfigError

Kind = Literal["digits", "folder", "hub", "shapes", "urls"]

_SHARDS = ("shard_samples", "shard_bytes")
_COLUMNS = ("path", "image_column", "caption_column")
_FETCHING = ("threads", "timeout_s", "retries")
TAKES: dict[str, tuple[str, ...]] = {
    "digits": ("shards",),
    "folder": (*_COLUMNS, *_SHARDS),
    "hub": (*_COLUMNS, "subset", "split", "revision", "samples", *_SHARDS),
    "shapes": ("samples", "size", "heldout_pairs", *_SHARDS),
    "urls": (*_COLUMNS, *_FETCHING, "largest_bytes", "allow_private", *_SHARDS),
}
"""Kind -> keys that have an effect on it."""

KINDS = tuple(TAKES)
SHAPES_SAMPLES = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """What `import` brings in. A key that has no effect on the kind is refused."""

    name: Kind
    """digits: 1,797 handwritten digits; shapes: generated scenes; folder: images and captions; hub:
    a Hugging Face dataset; urls: a list of addresses with captions."""
    shards: int = 8
    """digits: number of tar shards, of equal size up to one sample."""
    path: str = ""
    """folder: folder or URL; hub: `owner/name` or a local folder; urls: .parquet .csv .tsv .jsonl
    file."""
    image_column: str = ""
    """Column of the image; empty: `file_name` (folder), `image` (hub), `url` (urls)."""
    caption_column: str = ""
    """Column of the caption; empty: `caption` or `text`, whichever is there."""
    subset: str = ""
    """hub: configuration of a dataset that has several."""
    split: str = "train"
    """hub: split."""
    revision: str = ""
    """hub: branch, tag or commit; empty: the newest."""
    samples: int | None = None
    """shapes: number of scenes, None: 20,000; hub: the first so many rows, None: all."""
    size: int = 64
    """shapes: pixels of a side."""
    heldout_pairs: float = 0.1
    """shapes: share of the 40 (colour, shape) pairs that no scene shows."""
    threads: int = 16
    """urls: fetches at a time."""
    timeout_s: float = 20.0
    """urls: most seconds of one try: look-up, redirects and body included."""
    retries: int = 2
    """urls: more tries after a timeout, a lost connection, 429 or 5xx."""
    largest_bytes: int = 20_000_000
    """urls: most bytes of one picture."""
    allow_private: bool = False
    """urls: fetch from private, loopback and link-local addresses, too."""
    shard_samples: int = 10_000
    """Most rows of one shard: what a stopped import does again."""
    shard_bytes: int = 256_000_000
    """Most bytes of one tar; one picture that is larger has a tar of its own."""

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if field.name not in ("name", *TAKES[self.name]) and given != field.default:
                users = [kind for kind in KINDS if field.name in TAKES[kind]]
                raise ConfigError(
                    f"{field.name} {given!r} has no effect on source `{self.name}`",
                    f"take it out; it is for {', '.join(users)}",
                )
        if "path" in TAKES[self.name] and not self.path:
            raise ConfigError(f"source `{self.name}` needs `path`", _PATH_HINTS[self.name])
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not 1 <= self.shards <= 1000:
            raise ConfigError(f"shards {self.shards} is not in [1, 1000]")
        if not 32 <= self.size <= 1024:
            raise ConfigError(f"size {self.size} is not in [32, 1024]")
        if not 0 <= self.heldout_pairs <= 0.5:
            raise ConfigError(
                f"heldout_pairs {self.heldout_pairs} is not in [0, 0.5]",
                "every colour and every shape must still be shown",
            )
        if not 1 <= self.threads <= 256:
            raise ConfigError(f"threads {self.threads} is not in [1, 256]")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s {self.timeout_s} is not above 0")
        if not 0 <= self.retries <= 10:
            raise ConfigError(f"retries {self.retries} is not in [0, 10]")
        for name in ("samples", "largest_bytes", "shard_samples", "shard_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} {value} is less than 1")


_PATH_HINTS = {
    "folder": "source.path=./photos",
    "hub": "source.path=owner/name, or a local folder",
    "urls": "source.path=list.parquet",
}


def identity(source: SourceConfig) -> dict[str, Any]:
    """Return what of a source decides the bytes of its import: how fast it is fetched does not.

    Nor does where a folder or a list is: its listing says what is in it.
    """
    without = (*_FETCHING, "path") if source.name in ("folder", "urls") else _FETCHING
    keys = [key for key in TAKES[source.name] if key not in without]
    return {"name": source.name, **{key: getattr(source, key) for key in keys}}


def shortest(source: SourceConfig) -> dict[str, Any]:
    """Return the keys of a source that are no defaults: what a config file must say."""
    defaults = {f.name: f.default for f in fields(source)}
    values = {key: getattr(source, key) for key in TAKES[source.name]}
    return {"name": source.name, **{k: v for k, v in values.items() if v != defaults[k]}}
