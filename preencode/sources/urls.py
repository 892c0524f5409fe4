"""A list of URLs with captions, fetched by many threads, in the order of the list's deal.

A shard that is finished is never fetched again. So one is not finished while this machine cannot
reach anybody: where many URLs in a row, or all of a shard, cannot be reached, others of the list
are tried, and if none of them answers, that is an error and not the end of these URLs.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

import numpy as np

from imagen.errors import StorageError
from preencode.sources import images, rows, tables
from preencode.sources.config import SourceConfig
from preencode.sources.fetch import Fetcher, FetchError, Limits
from preencode.sources.rows import Bad, BadRowError, Row, Sample, Slice

_AHEAD = 4  # fetches under way or waiting for their turn, for each thread
_OFFLINE = frozenset({"dns", "connection", "timeout"})
_OFFLINE_ROWS = 20
_UNASKED = frozenset(
    {"bad_row", "bad_url", "no_caption", "non_utf8", "caption_size", "private_address"}
)
"""Reasons of rows that were not fetched, and tell nothing of the network."""
_WITNESSES = 4


def _is_answered(found: Row) -> bool:
    return isinstance(found, Sample) or found.reason not in _OFFLINE | _UNASKED


@dataclass(slots=True)
class _Watch:
    """Tells when the servers of a slice's URLs do not answer any more."""

    answered: deque[int]
    """The last rows that a server answered, whatever it said."""
    any_answered: bool = False
    in_vain: int = 0
    """Rows since then that could not be reached."""

    def note(self, row: int, found: Row) -> None:
        if _is_answered(found):
            self.any_answered, self.in_vain = True, 0
            self.answered.append(row)
        elif isinstance(found, Bad) and found.reason in _OFFLINE:
            self.in_vain += 1


class UrlsSource:
    """The rows of a list; which of them become samples is known once they are fetched."""

    def __init__(self, config: SourceConfig, seed: int, backoff_s: float = 1.0) -> None:
        self._config = config
        self._limits = Limits(
            timeout_s=config.timeout_s,
            retries=config.retries,
            largest_bytes=config.largest_bytes,
            allow_private=config.allow_private,
            backoff_s=backoff_s,
        )
        self._table = tables.read_table(
            config.path, [config.image_column or "url"], config.caption_column
        )
        self._order = rows.seeded_order(len(self._table), seed)
        self._most_in_vain = max(_OFFLINE_ROWS, _AHEAD * config.threads)
        self._answered: deque[int] = deque(maxlen=_WITNESSES)
        self.title = f"URLs in {config.path}"
        self.listing = self._table.digest
        self.rows = len(self._table)
        self.size_bytes = None
        self.ignored: Mapping[str, int] = {}

    def slices(self) -> Iterator[Slice]:
        """Cut the order into slices of one length."""
        return rows.equal_slices(self.rows, self._config.shard_samples)

    def read(self, part: Slice) -> Iterator[Row]:
        """Fetch the rows of a slice and yield them in order, whichever comes first.

        Raises StorageError when no URL can be reached: that is our network, not theirs.
        """
        numbers = self._order[part.start : part.stop].tolist()
        pairs = list(self._table.pairs(numbers))
        fetcher, watch = Fetcher(self._limits), _Watch(self._answered)
        with ThreadPoolExecutor(self._config.threads, "fetch") as pool:
            try:
                work = [_job(fetcher, row, *pair) for row, pair in zip(numbers, pairs, strict=True)]
                found_in_order = _in_order(pool, work, self._config)
                for row, found in zip(numbers, found_in_order, strict=True):
                    watch.note(row, found)
                    if watch.in_vain == self._most_in_vain:
                        self._check_network(part, watch.in_vain)
                        watch.in_vain = 0
                    yield found
            finally:
                fetcher.stop()
                pool.shutdown(cancel_futures=True)
        if watch.in_vain and not watch.any_answered:
            self._check_network(part, watch.in_vain)

    def _check_network(self, part: Slice, in_vain: int) -> None:
        """Raise StorageError unless a URL answers that is none of those which just did not."""
        before, after = self._order[: part.start], self._order[part.stop :]
        most = self._most_in_vain
        others = [*self._answered, *np.concatenate([before[:most], after[:most]])[:most].tolist()]
        if self._is_any_reached(others):
            return
        raise StorageError(
            f"none of {in_vain:,} URLs in a row could be reached"
            + (f", nor any of {len(others):,} others of the list" if others else ""),
            "check the network of this machine (proxies are not used), then run again: they are "
            "tried again, and what is imported stays; if the network is well, the list is of dead "
            "URLs",
        )

    def _is_any_reached(self, numbers: list[int]) -> bool:
        """Tell whether one of these rows is answered, each tried once."""
        fetcher = Fetcher(replace(self._limits, retries=0))
        with ThreadPoolExecutor(self._config.threads, "witness") as pool:
            pairs = zip(numbers, self._table.pairs(numbers), strict=True)
            work = [pool.submit(_fetch, fetcher, row, url, b"any") for row, (url, _) in pairs]
            try:
                return any(_is_answered(future.result()) for future in as_completed(work))
            finally:
                fetcher.stop()
                pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Sequence[Callable[[], Row]], config: SourceConfig
) -> Iterator[Row]:
    """Yield what the jobs return, in their order; those that wait for their turn are bounded."""
    window: deque[Future[Row]] = deque()
    following = iter(work)
    while True:
        while len(window) < _AHEAD * config.threads and _held(window) < config.shard_bytes:
            if (job := next(following, None)) is None:
                break
            window.append(pool.submit(job))
        if not window:
            return
        yield window.popleft().result()


def _held(window: Sequence[Future[Row]]) -> int:
    done = (future.result() for future in window if future.done())
    return sum(found.tar_bytes for found in done if isinstance(found, Sample))


def _job(fetcher: Fetcher, row: int, url: bytes | None, text: bytes | None) -> Callable[[], Row]:
    return lambda: _fetch(fetcher, row, url, text)


def _fetch(fetcher: Fetcher, row: int, url: bytes | None, text: bytes | None) -> Row:
    where = (url or b"").decode("utf8", "replace").strip()
    try:
        if not where:
            raise BadRowError("bad_row", "it has no URL, or other columns than the list")
        caption = rows.caption_text(text)  # before the fetch, which it makes needless
        extension, data = images.stored(fetcher.get(where))
    except FetchError as err:
        return Bad(row, where, err.reason, err.detail)
    except BadRowError as err:
        return Bad(row, where, *err.args)
    about = json.dumps({"url": where}).encode()
    parts = {extension: data, "txt": caption.encode("utf8"), "json": about}
    return Sample(rows.key_of(row), parts)
