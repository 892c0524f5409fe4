"""Command line: `python -m eval [compare | publish | statistics | sample] …`; see --help."""

import importlib
import sys

from runtime.cli import main

COMMANDS = ("compare", "publish", "statistics", "sample")
"""First words that are commands, modules of `eval.commands`; without one it is `evaluate`."""

if __name__ == "__main__":
    given = len(sys.argv) > 1 and sys.argv[1] in COMMANDS
    module = sys.argv.pop(1) if given else "evaluate"
    command = importlib.import_module(f"eval.commands.{module}")
    main(command.run, command.parser())
