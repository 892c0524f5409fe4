import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from imagen import storage
from imagen.data.order import Order
from imagen.data.shard_cache import Remote, ShardCache
from imagen.errors import ImagenError, ShardError, StorageError
from train.prefetch import Prefetch

SIZE = 100


@pytest.fixture
def prefetch(tmp_path, monkeypatch) -> Callable[[], Prefetch]:
    """Make one of 40 remote shards of 8 samples, of which a few are needed at once."""

    def content(url: str) -> bytes:
        return url.encode().ljust(SIZE)

    def download(url: str, target: str) -> None:
        with open(target, "wb") as file:
            file.write(content(url))

    monkeypatch.setattr(storage, "download", download)
    urls = [f"http://store/{i}" for i in range(40)]
    remotes = [Remote(url, SIZE, storage.crc32c(content(url))) for url in urls]
    source = SimpleNamespace(index_dir="index", remote=lambda shard: remotes[shard])
    cache = ShardCache(str(tmp_path / "cache"), 10**6)
    order = Order([8] * 40, 5, 1, 12, 2)
    inputs: Any = SimpleNamespace(prepared=source, embeddings=None, order=order, cache=cache)
    return lambda: Prefetch(inputs, range(2), range(150), 2)


def there(one: Prefetch, remotes: list[Remote]) -> list[bool]:
    return [os.path.exists(one.inputs.cache.path(remote)) for remote in remotes]


@pytest.mark.parametrize("error", [StorageError, ShardError])
def test_only_a_file_that_is_needed_ends_the_training(prefetch, monkeypatch, error):
    one = prefetch()
    needed, ahead = one._plan(0)
    real = storage.download

    def fails(url: str, target: str) -> None:
        if url == broken.url:
            raise error("no such luck")
        real(url, target)

    monkeypatch.setattr(storage, "download", fails)
    broken = ahead[0]
    one._follow(0)
    assert all(there(one, needed))
    assert not there(one, ahead)[0]
    broken = Remote("none", 0, "")
    if error is StorageError:  # what the store refused may be there later
        one._follow(0)
        assert all(there(one, ahead))
    (broken, *_) = again = one._plan(60)[0]
    assert not any(there(one, again[:1]))
    with pytest.raises(ImagenError, match="no such luck"):
        one._follow(60)


def test_a_step_that_needs_what_the_last_one_needed_does_nothing(prefetch, monkeypatch):
    one = prefetch()
    calls = []
    real = one.inputs.cache.pin
    monkeypatch.setattr(one.inputs.cache, "pin", lambda *plan: (calls.append(plan[0]), real(*plan)))
    for step in (0, 0, 60, 60):
        one._step = step
        one._follow(step)
    assert calls == [one._plan(0)[0], one._plan(60)[0]]


def test_what_is_ahead_waits_when_the_training_has_moved_on(prefetch):
    one = prefetch()
    needed, ahead = one._plan(0)
    one._step = 1
    one._follow(0)
    assert all(there(one, needed))
    assert not any(there(one, ahead))
