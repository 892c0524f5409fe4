import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.text.plan import plan

LENGTHS = st.lists(st.integers(1, 200), max_size=300)


@given(LENGTHS, st.integers(1, 500))
def test_every_caption_is_in_one_batch_and_batches_keep_the_budget(lengths, budget):
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 500))
def test_captions_come_by_length_and_equals_in_their_own_order(lengths, budget):
    order = [i for batch in plan(lengths, budget) for i in batch]
    assert order == sorted(order, key=lambda i: (lengths[i], i))


@given(LENGTHS, st.integers(1, 500))
def test_a_batch_ends_only_where_the_next_caption_has_no_room(lengths, budget):
    batches = plan(lengths, budget)
    assert all(batches)
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[i] for i in [*batch, following[0]]) > budget


@given(LENGTHS, st.integers(1, 500))
def test_planning_again_from_a_batch_on_changes_nothing(lengths, budget):
    batches = plan(lengths, budget)
    late = [lengths[i] for batch in batches[1:] for i in batch]
    assert [len(batch) for batch in plan(late, budget)] == [len(batch) for batch in batches[1:]]


def test_the_plan_depends_on_lengths_alone():
    assert plan([3, 2, 3, 2], budget=100) == [[1, 3, 0, 2]]
    assert plan([3, 2, 3, 2], budget=5) == [[1, 3], [0], [2]]
    assert plan((3, 2, 3, 2), budget=5) == plan([3, 2, 3, 2], budget=5)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_caption_over_the_budget_is_a_batch_of_its_own(at):
    lengths = [2, 2]
    lengths.insert(at, 9)
    assert plan(lengths, budget=8)[-1] == [at]
    assert plan([*lengths, 9], budget=8)[-2:] == [[at], [3]]


def test_nothing_to_encode_is_no_batch():
    assert plan([], budget=8) == []
