"""Command line: `python -m train [ema] …`; see --help."""

import importlib
import sys

from runtime.cli import main

COMMANDS = {"ema": "ema"}
"""First word -> module of `train.commands`; without one of them it is `fit`."""

if __name__ == "__main__":
    module = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if module is not None:
        del sys.argv[1]
    command = importlib.import_module(f"train.commands.{module or 'fit'}")
    main(command.run, command.parser())
