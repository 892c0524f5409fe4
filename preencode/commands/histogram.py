"""A histogram of caption lengths, as text."""

from collections import Counter
from collections.abc import Iterator

BARS = 12
WIDTH = 40


def histogram_lines(lengths: Counter[int]) -> Iterator[str]:
    """Yield one line for each range of lengths in tokens, the end of sequence included."""
    if not lengths:
        return
    longest, total = max(lengths), lengths.total()
    step = -(-longest // BARS)
    counts = [
        sum(lengths[n] for n in range(low, low + step)) for low in range(1, longest + 1, step)
    ]
    mean = sum(n * count for n, count in lengths.items()) / total
    yield f"tokens of a caption (mean {mean:.1f}, longest {longest}; {total:,} distinct captions)"
    for i, count in enumerate(counts):
        low = 1 + i * step
        name = f"{low}" if step == 1 else f"{low}-{low + step - 1}"
        bar = "█" * round(WIDTH * count / max(counts)) or ("▏" if count else "")
        yield f"{name:>11}  {bar} {count:,}"
