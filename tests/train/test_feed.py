import contextlib
import http.server
import itertools
import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from imagen import storage
from imagen.data import open_shards
from imagen.data.images import decode
from imagen.data.samples import Bad
from imagen.errors import ConfigError, ImagenError, ShardError
from train import feed as feeds
from train import job as jobs
from train.data import Microbatch, Positions, shares
from train.feed import feed
from train.job import Inputs, Job
from train.loop import World
from train.prefetch import check_room, remotes
from train.quarantine import Quarantine

ALONE = World(0, 1, torch.device("cpu"))


def flat(steps: list[list[Microbatch]]) -> list[Microbatch]:
    return list(itertools.chain(*steps))


def same(a: Microbatch, b: Microbatch) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def copies(tmp_path, monkeypatch) -> str:
    """Where this test's local copies of remote shards are."""
    folder = str(tmp_path / "copies")
    monkeypatch.setattr(jobs, "CACHE", folder)
    return folder


@pytest.fixture
def remote(project: str) -> Iterator[str]:
    """The address of a project that is behind a web server."""
    with _server(project) as url:
        yield url


@contextlib.contextmanager
def _server(folder: str) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object, **__: object) -> None:
            pass

    handler = partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def job(helpers, folder: str, **train: object) -> Job:
    return Job(helpers.make_config(folder, **train), "base", "launch")


def fed(one: Job, world: World = ALONE, images_seen: int = 0) -> list[list[Microbatch]]:
    inputs = Inputs.open(one.config, one.member)
    with feed(one, inputs, world, images_seen) as steps:
        return list(steps)


def held(copies: str) -> list[str]:
    folder = f"{copies}/files"
    return os.listdir(folder) if os.path.isdir(folder) else []


def test_a_rank_is_fed_its_microbatches_of_each_step_from_any_on(helpers, project: str):
    one = job(helpers, project, microbatch=3)
    whole = fed(one)
    assert [[len(part.keys) for part in parts] for parts in whole] == [[2, 3, 3]] * 20
    resumed = fed(one, images_seen=8 * 17)
    assert [len(parts) for parts in resumed] == [3, 3, 3]
    assert all(map(same, flat(resumed), flat(whole[17:])))
    assert fed(one, images_seen=160) == []


def test_ranks_make_the_same_number_of_passes_and_see_each_sample_once(helpers, project: str):
    for world, microbatch in ((3, 2), (3, 1), (5, 1), (7, 8)):
        one = job(helpers, project, microbatch=microbatch, images=16)
        ranks = [fed(one, World(rank, world, torch.device("cpu"))) for rank in range(world)]
        assert len({len(parts) for rank in ranks for parts in rank}) == 1
        alone = fed(job(helpers, project, images=16))
        for step in range(2):
            parts = [part for rank in ranks for part in rank[step]]
            assert sum((part.keys for part in parts), ()) == alone[step][0].keys
            assert sum(float(part.weight.sum()) for part in parts) == 8


def test_a_filler_has_pixels_and_no_weight(helpers, project: str):
    parts = shares(8, 1, 0, 3)
    assert parts == [range(0, 0), range(0, 1), range(1, 2)]
    one = job(helpers, project)
    data = Inputs.open(one.config, "base").samples(one.config, "base")
    filler, first, _ = (data.__getitems__(at) for at in Positions(parts, 8, 1, 2))
    assert (filler.keys, filler.bad, filler.weight.tolist()) == ((), (), [0.0])
    assert torch.equal(filler.pixels, first.pixels)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_remote_shards_give_the_same_batches_through_a_cache_that_holds_half_of_them(
    helpers, tmp_path, copies, workers
):
    helpers.write_data(str(tmp_path), (12,) * 10)
    with _server(str(tmp_path)) as url:
        keys = {"lanes": 1, "window": 12, "images": 240}
        far = job(helpers, url, **keys, loader_workers=workers)
        inputs = Inputs.open(far.config, "base")
        files = [file for shard in range(10) for file in remotes(inputs, shard)]
        limit = sum(file.size for file in files) * (5 if workers == 0 else 8) // 10
        inputs.cache.limit_bytes = limit
        seen, most = [], 0
        with feed(far, inputs, ALONE, 0) as steps:
            for step in steps:
                seen.append(step)
                most = max(most, sum(int(name.split("-")[1]) for name in held(copies)))
    assert len(files) == 20
    assert 0 < most <= limit
    assert all(map(same, flat(seen), flat(fed(job(helpers, str(tmp_path), **keys)))))


def test_a_cache_that_cannot_hold_what_is_needed_is_refused_before_the_first_step(
    helpers, remote: str, copies
):
    one = job(helpers, remote, cache_gb=1e-5)
    inputs = Inputs.open(one.config, "base")
    with pytest.raises(ConfigError, match=r"cache_gb 1e-05 is less than what a worker needs at"):
        check_room(inputs, one.train)
    with (
        pytest.raises(ConfigError, match=r"need \d remote files at once, .*may hold 1e-05 GB"),
        feed(one, inputs, ALONE, 0),
    ):
        pass
    assert held(copies) == []


def test_a_disk_that_cannot_hold_the_copies_is_refused(helpers, remote: str, copies, monkeypatch):
    one = job(helpers, remote)
    inputs = Inputs.open(one.config, "base")
    check_room(inputs, one.train)
    monkeypatch.setattr(type(inputs.cache), "room_bytes", lambda _: 1000)
    with pytest.raises(ConfigError, match=r"but there is room for 1e-06 GB in .*copies"):
        check_room(inputs, one.train)


def test_local_data_needs_no_room_and_leaves_no_copies(helpers, project: str, copies):
    one = job(helpers, project, cache_gb=1e-9)
    check_room(Inputs.open(one.config, "base"), one.train)
    assert fed(one)
    assert not os.path.exists(copies)


def test_an_error_of_the_prefetch_ends_the_training_with_its_reason(
    helpers, project, remote: str, copies
):
    with open(f"{project}/data/00001.tar", "r+b") as tar:
        tar.write(b"other bytes")
    with pytest.raises(ImagenError, match=r"data/00001.tar` has changed since it was indexed"):
        fed(job(helpers, remote))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_the_loader_arrives_with_its_message_and_hint(helpers, project: str, workers):
    with open(f"{project}/data/00001.tar", "ab") as tar:
        tar.write(bytes(512))
    with pytest.raises(ShardError) as raised:
        fed(job(helpers, project, loader_workers=workers))
    assert raised.value.message.startswith(f"tar `{project}/data/00001.tar` has changed since")
    assert "run `python -m preencode CONFIG`" in (raised.value.hint or "")


def test_evicted_shards_are_closed_before_each_microbatch(helpers, remote: str, copies):
    one = job(helpers, remote)
    inputs = Inputs.open(one.config, "base")

    def deleted() -> list[str]:
        opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
        with open("/proc/self/maps") as maps:
            return [path for path in (*opened, *maps) if copies in path and "deleted" in path]

    with feed(one, inputs, ALONE, 0) as steps:
        next(steps)
        for name in held(copies):
            if storage.TEMP_MARK not in name:
                os.unlink(f"{copies}/files/{name}")
        assert deleted()
        next(steps)
        assert not deleted()


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]


def test_all_shards_of_the_windows_of_a_rank_stay_open(helpers, project: str, monkeypatch):
    monkeypatch.setattr(open_shards, "OPEN_SHARDS", 1)
    one = job(helpers, project, window=64)
    inputs = Inputs.open(one.config, "base")
    with feed(one, inputs, ALONE, 0) as steps:
        list(steps)
    assert len(inputs.prepared._shard) == 3


def test_pins_and_threads_end_with_the_feed(helpers, remote: str, copies):
    one = job(helpers, remote)
    inputs = Inputs.open(one.config, "base")
    with feed(one, inputs, ALONE, 0) as steps:
        next(steps)
        assert len(os.listdir(f"{copies}/pins")) == 1
        assert "prefetch" in {thread.name for thread in threading.enumerate()}
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
    assert inputs.cache._pins.read().now == set()


def test_samples_are_mirrored_by_their_position_at_both_sizes(helpers, project: str):
    plain, always, half = (
        Job(helpers.make_config(project, flip=flip), "sr1", "launch") for flip in (0, 1, 0.5)
    )
    a, b, c = (fed(one) for one in (plain, always, half))
    flipped = []
    for whole, mirrored, mixed in zip(flat(a), flat(b), flat(c), strict=True):
        assert torch.equal(mirrored.pixels, whole.pixels.flip(-1))
        assert whole.lowres is not None
        assert mirrored.lowres is not None
        assert mixed.lowres is not None
        assert torch.equal(mirrored.lowres, whole.lowres.flip(-1))
        assert torch.equal(mirrored.eps, whole.eps)
        for i in range(8):
            is_flipped = bool((mixed.pixels[i] == mirrored.pixels[i]).all())
            source = mirrored if is_flipped else whole
            assert torch.equal(mixed.pixels[i], source.pixels[i])
            assert source.lowres is not None
            assert torch.equal(mixed.lowres[i], source.lowres[i])
            flipped.append(is_flipped)
    assert 50 < sum(flipped) < 110  # of 160
    again = fed(half, images_seen=80)
    assert all(map(same, flat(again), flat(c[10:])))


def test_a_crop_is_cut_out_of_the_mirrored_picture(helpers, project: str):
    train = {"crop_px": 8, "flip": 1.0}
    config = helpers.make_config(project)
    for name, value in train.items():
        object.__setattr__(config.train["sr1"], name, value)
    data = Inputs.open(config, "sr1").samples(config, "sr1")
    part = data.__getitems__(range(8))
    assert data.crops is not None
    shards, at = data.order.batch(0)
    places = data.crops.places(config.seed, range(8))
    for i, (row, column) in enumerate(places):
        sample = int(data.prepared.rows(int(shards[i]), "train")[int(at[i])])
        (plane,) = decode(data.prepared.image(int(shards[i]), sample), (16,), 1)
        wanted = plane[:, :, ::-1][:, 2 * row : 2 * row + 8, 2 * column : 2 * column + 8]
        assert (part.pixels[i].numpy() == wanted).all()


def test_the_rate_of_the_loader_alone_is_told(helpers, project: str):
    assert feeds.rate(helpers.make_config(project), "base", seconds=0.05) > 1


def test_a_bad_sample_is_written_down_once_in_the_life_of_a_run(tmp_path):
    first = Quarantine(str(tmp_path))
    assert first.counts() == {}
    assert not os.listdir(tmp_path)
    assert first.note(Bad("a", "unreadable", "why"))
    assert not first.note(Bad("a", "unreadable", "why"))
    first.close()
    again = Quarantine(str(tmp_path))
    assert not again.note(Bad("a", "unreadable", "why"))
    assert again.note(Bad("b", "too_small", "7 px"))
    assert again.note(Bad("c", "too_small", "6 px"))
    again.close()
    assert Quarantine(str(tmp_path)).counts() == {"too_small": 2, "unreadable": 1}
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert ['"key": "a"' in lines[0], len(lines)] == [True, 3]
