"""Command line: `python -m pipeline COMMAND CONFIG …`; see --help."""

import argparse
import importlib

from runtime import cli

COMMANDS = ("run", "submit", "schedule", "status", "logs", "stop", "plan")
"""Words that are commands, modules of `pipeline.commands`."""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Run the stages in order, here or on a cluster, and see how far they are.",
    )
    commands = top.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f"pipeline.commands.{name}")
        one = commands.add_parser(
            name,
            help=module.TEXT.partition("\n")[0].rstrip("."),
            description=module.TEXT,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add(one)
        one.set_defaults(command=module.run)
    return top


if __name__ == "__main__":
    cli.main(lambda args: args.command(args), parser())
