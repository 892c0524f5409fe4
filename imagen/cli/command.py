"""The parser of the `imagen` command and how it ends: 2 for a user's error."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from imagen.cli import edit, plan, sample, upscale
from imagen.errors import ImagenError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the `imagen` command."""
    top = argparse.ArgumentParser(
        prog="imagen",
        description="Pictures from text, by cascades that you train.",
        epilog="`imagen COMMAND --help` has examples.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (sample, edit, upscale, plan):
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the `imagen` command and exit: 2 for a user's error, 130 for an interrupt."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(words)
    args.words = words
    try:
        args.run(args)
    except ImagenError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
