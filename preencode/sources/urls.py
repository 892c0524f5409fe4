"""A list of URLs with captions, fetched by many threads, in the order of the list's deal."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from imagen.errors import StorageError
from preencode.sources import images, rows, tables
from preencode.sources.config import SourceConfig
from preencode.sources.fetch import Fetcher, FetchError, Limits
from preencode.sources.rows import Bad, BadRowError, Row, Sample, Slice

_AHEAD = 4  # fetches under way or waiting for their turn, for each thread
_OFFLINE = frozenset({"dns", "connection", "timeout"})
_OFFLINE_ROWS = 20


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

        Raises StorageError when no row of many can be reached: that is our network, not theirs.
        """
        numbers = self._order[part.start : part.stop].tolist()
        pairs = list(self._table.pairs(numbers))
        fetcher, offline = Fetcher(self._limits), 0
        with ThreadPoolExecutor(self._config.threads, "fetch") as pool:
            try:
                work = [_job(fetcher, row, *pair) for row, pair in zip(numbers, pairs, strict=True)]
                for found in _in_order(pool, work, self._config):
                    offline += isinstance(found, Bad) and found.reason in _OFFLINE
                    yield found
            finally:
                fetcher.stop()
                pool.shutdown(cancel_futures=True)
        if offline == len(part) >= _OFFLINE_ROWS:
            raise StorageError(
                f"none of {len(part):,} URLs in a row could be reached",
                "check the network of this machine (proxies are not used), then run again; what is "
                "imported stays",
            )


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
