"""Tars that img2dataset wrote, used in place: what it says beside each of them.

Of shard `00000` it leaves `00000.tar`, `00000.parquet` (a row for each attempt, failures too, in
another order than the tar's) and, last of all, `00000_stats.json`. The tar alone is read; the
stats say whether it is whole.
"""

import json

from imagen import storage
from imagen.data.index import ShardIndex
from imagen.data.tars import STATS
from imagen.errors import ShardError

NO_SAMPLE = ("hidden", "no_extension", "duplicate_key")
"""Reasons of quarantined members that are no sample of their own."""


def check(tar: str, index: ShardIndex) -> None:
    """Raise ShardError when img2dataset's stats count other samples than the tar holds."""
    path = tar.removesuffix(".tar") + STATS
    if not storage.exists(path):
        return
    try:
        wanted = int(json.loads(storage.get(path))["successes"])
    except (ValueError, KeyError, TypeError) as err:
        raise ShardError(
            f"`{path}` is not what img2dataset writes: {type(err).__name__}: {err}",
            "download the shard again with img2dataset, or delete this file",
        ) from err
    found = len(index.keys) + sum(bad.reason not in NO_SAMPLE for bad in index.bad)
    if found != wanted:
        raise ShardError(
            f"tar `{tar}` holds {found:,} samples, `{storage.name(path)}` says {wanted:,}",
            "img2dataset was stopped or run twice: download this shard again",
        )
