"""Other prompts for the same images: what they would score under a text that is not theirs."""

import hashlib
from collections import Counter
from collections.abc import Sequence


def partners(prompts: Sequence[str]) -> list[int] | None:
    """Return for each image the number of one with another prompt, each number once.

    Images are ordered by a hash of their prompts and moved on by as many as the commonest prompt
    has. None where that prompt has more than half of the images: there is no such order.
    """
    commonest = max(Counter(prompts).values(), default=0)
    if not prompts or 2 * commonest > len(prompts):
        return None
    ranks = {p: hashlib.sha256(p.encode("utf8", "surrogateescape")).digest() for p in prompts}
    order = sorted(range(len(prompts)), key=lambda i: (ranks[prompts[i]], i))
    found = [0] * len(prompts)
    for at, i in enumerate(order):
        found[i] = order[(at + commonest) % len(order)]
    return found
