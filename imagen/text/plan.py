"""Which captions go through the encoder together: a pure function of their lengths.

Sorted by length, captions of equal length stand next to each other and attend together without
padding (`imagen.text.flat`). Being pure, the plan makes a retried shard give the same bytes even in
bfloat16, where the size of a batch changes the last bits.
"""

from collections.abc import Sequence

CPU_TOKENS = 1024
"""Tokens of a batch on a CPU core: its activations stay in the cache, its matrices are large."""
GPU_TOKENS = 16384
"""Tokens of a batch on a GPU: reading the weights is then nothing beside using them."""


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return batches of indices, every index once, each batch at most `budget` tokens.

    Indices come by (length, index). A caption longer than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        room -= lengths[index]
        if room < 0 or not batches:
            batches.append([])
            room = budget - lengths[index]
        batches[-1].append(index)
    return batches
