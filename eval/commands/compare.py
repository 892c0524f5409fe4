"""`python -m eval compare A B`: two evaluations side by side, as a table and as a page."""

import argparse

from imagen.errors import ConfigError

TEXT = """\
Compare two evaluations: of two checkpoints, two runs, or one cascade sampled in two ways.

A and B are each the folder of an evaluation, or the `out` of a project (its newest evaluation);
paths or any fsspec URL. A table goes to stdout; --out also writes a page with pictures.
"""
EPILOG = """\
how to read it  B - A is of pairs of images with the same prompt and seed, where both have them
                and note a value for each image; its 95 % interval is Student's t of the pairs, and
                shares are judged by McNemar's exact test. Other figures are compared by their
                intervals as if they were independent, which is too careful, never too bold.

examples
  python -m eval compare runs/digits runs/other --out compare.html
  python -m eval compare runs/digits/eval/000000019200-1a2b3c4d runs/digits
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m eval compare",
        description=TEXT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="an evaluation, or a project's out")
    parser.add_argument("b", metavar="B", help="the same, of what A is compared with")
    parser.add_argument("--out", metavar="FILE", help="page to write: a path or URL, ends in .html")
    return parser


def run(args: argparse.Namespace) -> None:
    """Compare as the command line says."""
    if args.out is not None and not args.out.endswith(".html"):
        raise ConfigError(f"--out {args.out} does not end in .html, the page is HTML")
    from eval import compare as comparing  # behind it is torch: `--help` needs none
    from imagen import storage

    a, b = comparing.find(args.a), comparing.find(args.b)
    found = comparing.compare(a, b)
    print(f"A  {a.folder}")
    print(f"B  {b.folder}")
    print(f"{len(found.pairs):,} pairs of images with the same prompt and seed")
    for line in comparing.table(found):
        print(line)
    if args.out is not None:
        from eval.comparison_page import page

        storage.put(args.out, page(found).encode())
        print(args.out)
