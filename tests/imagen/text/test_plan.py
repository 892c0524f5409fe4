import random

import pytest

from imagen.text.plan import TOKEN_BUDGET, plan


@pytest.mark.parametrize("seed", range(5))
def test_every_caption_is_in_one_batch_within_the_budget(seed):
    draw = random.Random(seed)
    lengths = [min(120, int(draw.lognormvariate(2.7, 0.6)) + 1) for _ in range(3000)]
    batches = plan(lengths, budget=1024)
    assert sorted(i for batch in batches for i in batch) == list(range(3000))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert longest * len(batch) <= 1024
        assert longest <= 1.125 * min(lengths[i] for i in batch)


def test_little_of_a_batch_is_padding():
    draw = random.Random(0)
    lengths = [min(120, int(draw.lognormvariate(2.7, 0.6)) + 1) for _ in range(10_000)]
    slots = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan(lengths))
    assert sum(lengths) / slots > 0.94


def test_the_plan_depends_on_lengths_alone_and_keeps_the_order_of_equals():
    assert plan([3, 2, 3, 2], budget=100) == [[1, 3], [0, 2]]
    assert plan([3, 2, 3, 2], budget=100) == plan([3, 2, 3, 2], budget=100)


def test_a_caption_over_the_budget_is_a_batch_of_its_own():
    assert plan([TOKEN_BUDGET + 1, 2]) == [[1], [0]]


def test_nothing_to_encode_is_no_batch():
    assert plan([]) == []
