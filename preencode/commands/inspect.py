"""`python -m preencode inspect DIR [KEY]`: look at embeddings, or at those of one sample."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imagen import config, manifest, storage
from imagen.data import embeddings
from imagen.data.index import manifest_path
from imagen.data.prepared import Prepared
from imagen.data.tars import RESERVED
from imagen.errors import ConfigError, ImagenError, ShardError
from imagen.text.config import TextConfig
from imagen.text.encoder import load_tokenizer
from preencode.commands.histogram import histogram_lines
from preencode.report import human_bytes

TEXT = """\
Look at embeddings: whose they are, how many, how long the captions are. With KEY, look at one
sample: its caption, its tokens, the norm and the first values of each token's embedding.

DIR is a project's folder, its embeddings, or one encoder's folder of them. KEY is the sample's
WebDataset key, or SHARD:ROW.
"""

MORE = """\
examples:
  python -m preencode inspect runs/digits
  python -m preencode inspect runs/digits digit0007
  python -m preencode inspect gs://bucket/run/embeddings/8c14f0a6b2d93e57 00000:12
"""
SHOWN = 64
"""Shards whose captions are counted for the histogram."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m preencode inspect",
        description=TEXT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="a project, its embeddings, or one encoder's")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a sample's key, or SHARD:ROW")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print what is there."""
    for folder in _folders(args.folder.rstrip("/")):
        encoder = manifest.read(storage.join(folder, "encoder.json"), "encoder")
        lines = overview(folder, encoder) if args.key is None else sample(folder, encoder, args.key)
        print(*lines, sep="\n")


def _folders(folder: str) -> list[str]:
    """Return the folders of embeddings in or below `folder`. Raises ShardError for none."""
    for root in (folder, storage.join(folder, "embeddings")):
        below = [root, *(storage.join(root, name) for name in storage.listdir(root))]
        found = [f for f in below if storage.exists(storage.join(f, "encoder.json"))]
        if found:
            return found
    raise ShardError(
        f"no embeddings in or below `{folder}`",
        "give a project's folder (`out` of its config) after `python -m preencode CONFIG`",
    )


def overview(folder: str, encoder: Mapping[str, Any]) -> Iterator[str]:
    """Describe the embeddings of one encoder."""
    text = encoder["text"]
    yield f"{folder}"
    yield (
        f"encoder         {text['encoder']}, {encoder['dim']} wide, at most {text['max_tokens']} "
        f"tokens, computed in {text['dtype']}, cleaning {text['cleaning']}"
    )
    path = storage.join(folder, "manifest.json")
    names = _shards(folder)
    if storage.exists(path):
        whole = manifest.read(path, "embedding-set")
        yield (
            f"complete        {len(names):,} shards, {whole['rows']:,} samples, "
            f"{whole['captions']:,} distinct captions, {whole['tokens']:,} tokens, "
            f"{human_bytes(whole['bytes'])}"
        )
        yield f"cut / empty     {whole['truncated']:,} / {whole['empty']:,} captions"
    else:
        yield f"unfinished      {len(names):,} shards so far"
    lengths: Counter[int] = Counter()
    for name in names[:SHOWN]:
        lengths.update(np.diff(_part(folder, _body(folder, name), "offsets")).tolist())
    if len(names) > SHOWN:
        yield f"of the first {SHOWN} shards:"
    yield from histogram_lines(lengths)


def _shards(folder: str) -> list[str]:
    names = (n.removesuffix(".json") for n in storage.listdir(folder) if n.endswith(".json"))
    return [n for n in names if n not in RESERVED]


def _body(folder: str, name: str) -> dict[str, Any]:
    return manifest.read(manifest_path(folder, name), "embeddings")


def _part(folder: str, body: Mapping[str, Any], part: str) -> np.ndarray:
    return embeddings.open_part(folder, body, part)


def sample(folder: str, encoder: Mapping[str, Any], key: str) -> Iterator[str]:
    """Describe the embedding of one sample. Raises ShardError when there is no such key."""
    name, row = _find(folder, key)
    body = _body(folder, name)
    slot = int(_part(folder, body, "slots")[row])
    start, stop = (int(n) for n in _part(folder, body, "offsets")[slot : slot + 2])
    found = bytes(_part(folder, body, "keys")[row]).decode("utf8", "backslashreplace")
    yield f"key             {found}"
    yield f"place           shard {name}, row {row}, caption {slot} of {body['captions']}"
    yield from _caption_lines(folder, name, row)
    yield f"embedding       ({stop - start}, {body['dim']}) {body['dtype']}, tokens {start}:{stop}"
    ids = _part(folder, body, "ids")[start:stop].tolist()
    values = _part(folder, body, "tokens")[start:stop].astype(np.float32)
    yield from _token_lines(_pieces(encoder, ids), ids, values)


def _find(folder: str, key: str) -> tuple[str, int]:
    shard, colon, row = key.rpartition(":")
    names = _shards(folder)
    if colon and shard in names and row.isdigit():
        if int(row) >= (rows := _body(folder, shard)["rows"]):
            raise ShardError(f"shard {shard} has rows 0 to {rows - 1}, not {row}")
        return shard, int(row)
    wanted = key.encode("utf8", "surrogateescape")
    for name in names:
        rows = np.flatnonzero(_part(folder, _body(folder, name), "keys") == wanted)
        if len(rows):
            return name, int(rows[0])
    raise ShardError(
        f"no sample `{key}` in `{folder}`, in none of {len(names):,} shards",
        "it may be quarantined: see index/*.quarantine.jsonl; SHARD:ROW works, too",
    )


def _caption_lines(folder: str, name: str, row: int) -> Iterator[str]:
    """The caption stands in the tar, which the index beside the embeddings knows."""
    home = folder.rpartition("/")[0].rpartition("/")[0]
    try:
        data = Prepared.open(storage.join(home, "index"))
        shard = [s.name for s in data.shards].index(name)
        yield f"caption         {data.caption(shard, row)!r}"
        yield f"tar             {data.shards[shard].tar}"
    except (ImagenError, ValueError) as err:
        yield f"caption         not at hand: {getattr(err, 'message', 'the index lacks the shard')}"


def _pieces(encoder: Mapping[str, Any], ids: list[int]) -> list[str]:
    try:
        text = config.build(TextConfig, encoder["text"])
        return load_tokenizer(text, download=False).pieces(ids)
    except ConfigError:
        return [f"#{i}" for i in ids]


def _token_lines(pieces: list[str], ids: list[int], values: np.ndarray) -> Iterator[str]:
    norms = np.linalg.norm(values, axis=1)
    width = max(map(len, pieces))
    yield f"{'token':<{width}}  {'id':>7}  {'norm':>7}  first values"
    for piece, i, norm, value in zip(pieces, ids, norms, values, strict=True):
        first = " ".join(f"{x:+.3f}" for x in value[:6])
        yield f"{piece:<{width}}  {i:>7}  {norm:>7.3f}  {first} …"
