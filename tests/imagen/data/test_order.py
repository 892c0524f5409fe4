import itertools
import pickle
import random
import tracemalloc

import numpy as np
import pytest

from imagen.data import order as orders
from imagen.data.order import Order, permutation, rank_slice, splitmix64
from imagen.errors import ConfigError

SIZES = [70, 0, 33, 101, 5, 58]


def order(**changes: int) -> Order:
    return Order(
        **({"shard_sizes": SIZES, "seed": 7, "lanes": 4, "window": 20} | changes), global_batch=12
    )


def pairs(o: Order, step: int) -> list[tuple[int, int]]:
    shard, row = o.batch(step)
    return list(zip(shard.tolist(), row.tolist(), strict=True))


def test_splitmix64_gives_the_published_sequence_of_seed_0():
    # the generator adds its constant to the state before each output, as our hash does to its input
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [hex(int(v)) for v in splitmix64(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_an_order_is_bit_stable():
    assert permutation(8, 1, 2, 3).tolist() == [1, 0, 3, 7, 2, 5, 4, 6]
    assert pairs(order(), 0)[:3] == [(5, 6), (0, 66), (5, 10)]


@pytest.mark.parametrize("world", range(1, 17))
def test_ranks_of_any_world_size_cut_a_global_batch_into_contiguous_slices(world: int):
    o = order()
    for step in (0, 3, 25, 1000):
        parts = [o.part(step, *rank_slice(12, rank, world)) for rank in range(world)]
        shard, row = (np.concatenate(side) for side in zip(*parts, strict=True))
        assert [(s, r) for s, r in zip(shard.tolist(), row.tolist(), strict=True)] == pairs(o, step)
        shares = [len(part[0]) for part in parts]
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_no_sample_is_seen_twice_in_an_epoch_and_only_a_declared_tail_is_left_out(epoch: int):
    o = order()
    steps = range(epoch * o.steps_per_epoch, (epoch + 1) * o.steps_per_epoch)
    seen = [pair for step in steps for pair in pairs(o, step)]
    everything = {(s, r) for s, size in enumerate(SIZES) for r in range(size)}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= everything
    assert len(everything) - len(seen) < 12 + 4


def test_the_tail_is_a_different_one_each_epoch():
    o = order()
    everything = {(s, r) for s, size in enumerate(SIZES) for r in range(size)}
    tails = []
    for epoch in range(4):
        steps = range(epoch * o.steps_per_epoch, (epoch + 1) * o.steps_per_epoch)
        tails.append(everything - {pair for step in steps for pair in pairs(o, step)})
    assert all(a != b for a, b in itertools.pairwise(tails))


def test_seeking_gives_the_same_batch_as_going_there():
    went = order()
    for step in range(60):
        last = pairs(went, step)
    assert pairs(order(), 59) == last


def test_a_batch_is_made_of_the_next_slice_of_every_lane():
    o = order(shard_sizes=[400], window=1)  # no shuffling inside lanes: rows ascend, mod rotation
    first, second = (np.array(pairs(o, step))[:, 1].reshape(4, 3) for step in (0, 1))
    assert ((first[:, 1:] - first[:, :-1]) % 400 == 1).all()
    assert ((second[:, 0] - first[:, -1]) % 400 == 1).all()
    assert ((first[1:, 0] - first[:-1, 0]) % 400 == 100).all()


def test_seeds_and_epochs_give_different_orders():
    o = order()
    assert pairs(o, 0) != pairs(order(seed=8), 0)
    assert pairs(o, 0) != pairs(o, o.steps_per_epoch)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_through_random_worlds_sees_the_batches_of_one_worker_in_order(seed: int):
    alone, chance = order(), random.Random(seed)
    steps, seen = 2 * alone.steps_per_epoch + 3, []
    while len(seen) < steps:
        fresh = order()  # every start is a new process
        world = chance.randint(1, 16)
        for step in range(len(seen), min(steps, len(seen) + chance.randint(1, 9))):
            parts = [fresh.part(step, *rank_slice(12, rank, world)) for rank in range(world)]
            shard, row = (np.concatenate(side).tolist() for side in zip(*parts, strict=True))
            seen.append(list(zip(shard, row, strict=True)))
    assert seen == [pairs(alone, step) for step in range(steps)]
    for epoch in range(2):
        first = epoch * alone.steps_per_epoch
        once = [pair for batch in seen[first : first + alone.steps_per_epoch] for pair in batch]
        assert len(set(once)) == len(once) == alone.steps_per_epoch * 12


def test_seeking_far_makes_no_more_than_the_windows_of_one_batch(monkeypatch):
    far = Order([10_000] * 300, seed=7, lanes=8, window=4096, global_batch=256)
    made: list[tuple[int, ...]] = []

    def counted(count: int, *key: int) -> np.ndarray:
        made.append((count, *key))
        return permutation(count, *key)

    monkeypatch.setattr(orders, "permutation", counted)
    far.batch(10**6)
    counts = sorted(count for count, *_ in made)
    assert counts[0] == 300  # the shards of one epoch
    assert 1 + 8 <= len(counts) <= 1 + 2 * 8  # a lane's share lies in one window, or in two
    assert max(counts) == 4096


def test_a_hundred_thousand_shards_take_little_memory():
    sizes = [10_000] * 100_000
    tracemalloc.start()
    large = Order(sizes, seed=7, lanes=64, window=40_000, global_batch=2048)
    large.batch(large.steps_per_epoch - 1)
    large.batch(large.steps_per_epoch)
    large.shards_needed(large.steps_per_epoch - 1, 0, 2048, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (3, 6), (2, 5), (11, 12)])
def test_the_shards_that_are_needed_hold_all_samples_of_the_steps_and_little_else(start, stop):
    o = order()
    for step in (0, 5, o.steps_per_epoch - 2, o.steps_per_epoch, 1000):
        needed = o.shards_needed(step, start, stop, steps=4)
        parts = [o.part(s, start, stop)[0].tolist() for s in range(step, step + 4)]
        assert set(needed) >= {shard for part in parts for shard in part}
        assert len(set(needed)) == len(needed)
        assert 1 not in needed  # it is empty


def test_a_rank_needs_the_shards_of_its_lanes_windows_and_the_soonest_first():
    o = Order([10] * 40, seed=7, lanes=4, window=10, global_batch=4)
    assert o.shards_needed(0, 0, 4, 0) == []
    one = [o.shards_needed(0, lane, lane + 1) for lane in range(4)]
    assert [1 <= len(shards) <= 2 for shards in one] == [True] * 4
    assert o.shards_needed(0, 0, 4) == list(dict.fromkeys(itertools.chain(*one)))
    whole = o.shards_needed(0, 1, 2, o.steps_per_epoch)
    assert 10 <= len(whole) <= 11  # a lane is a quarter of 40 shards
    assert whole[: len(one[1])] == one[1]
    steps = [o.part(step, 1, 2)[0].tolist()[0] for step in range(o.steps_per_epoch)]
    assert set(steps) == set(whole)


def test_an_order_survives_pickling():
    assert pairs(pickle.loads(pickle.dumps(order())), 5) == pairs(order(), 5)


def test_a_batch_that_is_no_multiple_of_the_lanes_is_refused():
    with pytest.raises(ConfigError, match="global_batch 12 is no multiple of lanes 5"):
        order(lanes=5)


def test_a_batch_larger_than_an_epoch_is_refused():
    with pytest.raises(ConfigError, match="does not fit into an epoch of 9 training samples"):
        order(shard_sizes=[9])


def test_a_data_set_without_samples_is_refused():
    with pytest.raises(ConfigError, match="an epoch of 0 training samples"):
        order(shard_sizes=[])
