import itertools
import pickle

import numpy as np
import pytest

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


@pytest.mark.parametrize("world", range(1, 9))
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
