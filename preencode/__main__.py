"""Command line: `python -m preencode [import | prepare | verify | inspect] …`; see --help."""

import importlib
import sys

from runtime.cli import main

COMMANDS = {
    "import": "bring",
    "prepare": "prepare",
    "verify": "verify",
    "inspect": "inspect",
}
"""First word -> module of `preencode.commands`; without one of them it is `encode`."""

if __name__ == "__main__":
    module = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if module is not None:
        del sys.argv[1]
    command = importlib.import_module(f"preencode.commands.{module or 'encode'}")
    main(command.run, command.parser())
