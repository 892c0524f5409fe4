"""What encoding a caption costs: ours beside the ways that other trainers pre-encode, same weights.

On a CPU: captions per CPU-second of one thread, interleaved rounds, medians; useful operations of
real tokens beside a matrix product measured around each; bytes stored for a caption. On a GPU: the
stream of real tokens by tokens a batch, with the share of the measured matrix rate.

    python benchmarks/bench_preencode.py [--quick] [--rounds N]
    python benchmarks/bench_preencode.py --device cuda --shape xxl
"""

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import T5Config, T5EncoderModel

from imagen.text import tokens
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder
from imagen.text.plan import CPU_TOKENS, plan
from imagen.text.tiny_t5 import HashTokenizer

Rows = list[list[int]]
SHAPES = {
    "small": {"d_model": 512, "num_layers": 6, "num_heads": 8, "d_kv": 64, "d_ff": 1024},
    "xxl": {"d_model": 4096, "num_layers": 24, "num_heads": 64, "d_kv": 64, "d_ff": 10240},
}
WIDTHS = (77, 120, 256, 512)
"""What DeepFloyd IF, PixArt-alpha, imagen-pytorch's networks, and NeMo and mosaicml pad to."""
OURS = "**ours**"
VOCABULARY = 32128
CAPTIONS = 4096
PADDED_SLOTS = 4096
"""Slots of a batch that pads to a fixed length: 16 captions of 256."""
SORTED_SLOTS, SLACK = 1024, 1.125
"""Batches of stock transformers by sorted length: slots, longest over shortest."""
GPU_BATCHES = (8192, 16384, 32768)


def captions() -> Rows:
    """Return random ids with lengths as captions have: median 14, mean 17, 1 in 100 over 66."""
    draw = np.random.default_rng(0)
    lengths = np.rint(14 * np.exp(0.668 * draw.standard_normal(CAPTIONS))).astype(int)
    return [[*draw.integers(2, VOCABULARY, max(1, n - 1)).tolist(), 1] for n in lengths]


def model(shape: str, device: str, dtype: torch.dtype) -> T5EncoderModel:
    """Return an encoder with random weights, gated as T5 v1.1."""
    transformers.utils.logging.disable_progress_bar()
    sizes: dict[str, Any] = SHAPES[shape]
    config = T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **sizes)
    torch.manual_seed(0)
    with torch.device(device):
        made = T5EncoderModel._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return made.eval().requires_grad_(False)


class Stock:
    """transformers' own forward pass over padded batches with a mask."""

    def __init__(self, made: T5EncoderModel, attention: str) -> None:
        config = T5Config(**made.config.to_dict())
        with torch.device("meta"):
            self.model: Any = T5EncoderModel._from_config(config, attn_implementation=attention)
        self.model.load_state_dict(made.state_dict(), assign=True)
        self.model.eval()

    @torch.inference_mode()
    def __call__(self, rows: Rows, width: int) -> None:
        """Encode rows padded, or cut, to a width."""
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        lengths = torch.tensor([min(width, len(row)) for row in rows])
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = torch.tensor(row[:width])
        self.model(input_ids=ids, attention_mask=torch.arange(width) < lengths[:, None])


class Rate(NamedTuple):
    """Of one CPU-second, or of a whole run: medians."""

    captions: float
    useful: float
    """Operations of real tokens."""
    share: float
    """Of what a matrix product did before, after and meanwhile."""


def cpu_s(function: Callable, *args: Any) -> float:
    """Return CPU seconds of one call."""
    began = time.process_time()
    function(*args)
    return time.process_time() - began


def product(n: int = 1024, times: int = 4) -> float:
    """Return the operations a CPU-second of a matrix product."""
    a = torch.randn(n, n)
    return times * 2 * n**3 / cpu_s(lambda: [torch.mm(a, a) for _ in range(times)])


@dataclass
class Case:
    """A way to encode: `batches(round)` gives those of one round, `run` encodes one of them."""

    name: str
    batches: Callable[[int], list[Rows]]
    run: Callable[[Rows], None]
    longest: int = 10**9
    """Tokens that are kept of a caption."""
    by_length: bool = False
    """Whether its cost follows the tokens of captions; else their number, whatever their length."""

    def rate(self, at: int, rows: Rows, flops: Callable[[Sequence[int]], int]) -> Rate:
        """Return what a round gives for a whole shard of captions `rows`."""
        batches, seconds, matrix = self.batches(at), 0.0, [product()]
        for batch in batches:
            seconds += cpu_s(self.run, batch)
            if seconds > len(matrix):  # once a second, for other load comes and goes
                matrix.append(product())
        matrix.append(product())
        one = flops([min(self.longest, len(row)) for row in rows]) / len(rows)
        done = [len(row) for batch in batches for row in batch]
        number = flops(done) / one if self.by_length else len(done)
        return Rate(
            number / seconds,
            one * number / seconds,
            one * number / seconds / statistics.mean(matrix),
        )


def sorted_batches(rows: Rows) -> list[Rows]:
    """Return batches by sorted length, of bounded slots and bounded padding."""
    batches: list[Rows] = []
    for row in sorted(rows, key=len):
        batch = batches[-1] if batches else []
        full = (len(batch) + 1) * len(row) > SORTED_SLOTS
        if not batch or full or len(row) > SLACK * len(batch[0]):
            batches.append([])
        batches[-1].append(row)
    return batches


def random_batches(rows: Rows, at: int) -> list[Rows]:
    """Return 4 batches of 64 random captions, others in each round."""
    order = np.random.default_rng(at).permutation(len(rows))[: 4 * 64]
    return [[rows[i] for i in order[start : start + 64]] for start in range(0, 256, 64)]


def longest(stock: Stock, batch: Rows) -> None:
    """Encode a batch padded to its longest."""
    stock(batch, max(map(len, batch)))


def cases(rows: Rows, encoder: TextEncoder, made: T5EncoderModel, quick: bool) -> list[Case]:
    """Return the ways that are compared; quick: fewer, on fewer captions."""
    eager, sdpa = Stock(made, "eager"), Stock(made, "sdpa")
    stocks = {"eager": eager} if quick else {"eager": eager, "sdpa": sdpa}
    found = []
    for width, (name, stock) in itertools.product((256,) if quick else WIDTHS, stocks.items()):
        fixed = [rows[: PADDED_SLOTS // width]]
        run = partial(stock, width=width)
        found.append(Case(f"padded to {width}, {name}", partial(always, fixed), run, width))
    for name, stock in stocks.items():
        random = partial(random_batches, rows)
        title = f"random 64, padded to the longest, {name}"
        found.append(Case(title, random, partial(longest, stock)))
    singles = [[row] for row in sorted(rows, key=len)[32::64]]
    single = Case("one a call, eager", partial(always, singles), partial(longest, eager))
    stock = sorted_batches(rows)[4 :: 16 if quick else 4]
    by_slots = Case("sorted, slots bounded, sdpa", partial(always, stock), partial(longest, sdpa))
    whole = [[rows[i] for i in batch] for batch in plan([len(row) for row in rows], CPU_TOKENS)]
    whole = whole[4::8] if quick else whole
    parts = [whole[start : start + 8] for start in range(0, len(whole), 8)]
    ours = [list(itertools.chain.from_iterable(part)) for part in parts]
    last = Case(OURS, partial(always, ours), partial(stream, encoder))
    by_slots.by_length = last.by_length = True
    return [*found, *([] if quick else [single]), by_slots, last]


def stream(encoder: TextEncoder, batch: Rows) -> None:
    """Encode some batches of the plan, to what is stored."""
    encoder.encode_ids(batch, np.float16)


def always(batches: list[Rows], at: int) -> list[Rows]:  # noqa: ARG001
    """Return the same batches in each round."""
    return batches


def compare(rounds: int, quick: bool) -> None:
    """Print the table of a CPU core."""
    torch.set_num_threads(1)
    rows, made = captions(), model("small", "cpu", torch.float32)
    encoder = TextEncoder(TextConfig(), HashTokenizer(), made, "")
    found = cases(rows, encoder, made, quick)
    rates: dict[str, list[Rate]] = {case.name: [] for case in found}
    product()
    for at in range(rounds):
        for case in found:
            rates[case.name].append(case.rate(at, rows, encoder.flops))
    medians = {n: Rate(*map(statistics.median, zip(*r, strict=True))) for n, r in rates.items()}
    print("| way | captions/CPU-s | ours is faster by | useful GFLOP/s | of the matrix rate |")
    print("|---|---|---|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate.captions:.1f} | {medians[OURS].captions / rate.captions:.1f}x "
              f"| {rate.useful / 1e9:.1f} | {rate.share:.0%} |")  # fmt: skip
    for name in list(rates)[-2:]:
        shares = ", ".join(f"{rate.share:.1%}" for rate in rates[name])
        print(f"\nRound by round, {name}: {shares} of the matrix rate.")
    print(f"\nLoad at the end {os.getloadavg()[0]:.1f}.")


def storage(rows: Rows, repeated: float) -> None:
    """Print bytes a caption takes by convention; `repeated`: share of captions that are not new."""
    dim, bytes_of = SHAPES["small"]["d_model"], {"float32": 4, "float16": 2}
    again = [*rows, *rows[: round(len(rows) * repeated / (1 - repeated))]]
    different = f"{OURS}, all captions different"
    stored = {different: rows, f"{OURS}, {repeated:.0%} of captions repeated": again}
    sizes = {
        f"padded to {width}, {dtype}": float(width * dim * size)
        for width, (dtype, size) in itertools.product(WIDTHS, bytes_of.items())
    }
    for name, kept in stored.items():
        distinct, _ = tokens.distinct(kept)
        index = 8 * len(distinct) + 4 * len(kept)  # offsets, slots
        sizes[name] = (sum(map(len, distinct)) * dim * 2 + index) / len(kept)
    print(f"\n| stored as (d = {dim}) | KB a caption | over ours |\n|---|---|---|")
    for name, size in sizes.items():
        print(f"| {name} | {size / 1000:.1f} | {size / sizes[different]:.2g}x |")


def by_budget(shape: str, device: str, budgets: Sequence[int], total: int) -> None:
    """Print tokens a second and the share of the matrix rate by tokens a batch (for a GPU)."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = model(shape, device, dtype)
    rows = captions()
    rows = (rows * (total // sum(map(len, rows)) + 1))[: total * len(rows) // sum(map(len, rows))]
    lengths = [len(row) for row in rows]
    print("| tokens a batch | tokens/s | captions/s | useful TFLOP/s | of the matrix rate |")
    print("|---|---|---|---|---|")
    matrix = 0.0
    for budget in budgets:
        encoder = TextEncoder(TextConfig(), HashTokenizer(), made, "", budget)
        out = np.empty((sum(lengths), encoder.dim), np.float16)
        encoder.encode_into(rows, out)  # compiles
        began = time.perf_counter()
        encoder.encode_into(rows, out)
        seconds = time.perf_counter() - began
        rate, matrix = encoder.flops(lengths) / seconds, encoder.matmul_rate()
        print(f"| {budget:,} | {sum(lengths) / seconds:,.0f} | {len(rows) / seconds:,.0f} "
              f"| {rate / 1e12:.2g} | {rate / matrix:.0%} |")  # fmt: skip
    print(f"\nMatrix rate measured: {matrix / 1e12:.2g} TFLOP/s, {dtype}.")


def main() -> None:
    """Measure on the device that is asked for."""
    parser = argparse.ArgumentParser(description="What encoding a caption costs.")
    parser.add_argument("--quick", action="store_true", help="fewer ways, one round, under 60 s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="xxl", help="of --device cuda")
    args = parser.parse_args()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}, "
          f"torch {torch.__version__}, transformers {transformers.__version__}\n")  # fmt: skip
    if args.device == "cuda":
        by_budget(args.shape, "cuda", GPU_BATCHES, 2 * max(GPU_BATCHES) * (1 if args.quick else 4))
        return
    compare(1 if args.quick else args.rounds, args.quick)
    storage(captions(), 0.18)  # of Conceptual Captions 3M, by recognize-anything #147


if __name__ == "__main__":
    main()
