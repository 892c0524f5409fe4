"""`imagen sample "a handwritten seven" --cascade DIR --out seven.png`: pictures from text."""

from typing import Any

from imagen.cli import arguments
from imagen.cli.making import make

EXAMPLES = """\
examples
  imagen sample "seven" --cascade runs/digits/cascade --out seven.png
  imagen sample "seven" "the digit 3" --count 4 --cascade runs/digits/cascade --out grid.png
  imagen sample --prompts prompts.txt --cascade runs/digits/cascade --out pictures/
  imagen sample "" --cascade runs/digits/cascade --out anything.png       (no text)
  imagen sample "seven" --negative "one" --until base --cascade runs/digits/cascade --out s.png
  imagen sample "seven" --set spacing=karras --set sr1.guidance_scale=1 \\
      --set base.guidance_interval=[0.1,0.8] --cascade runs/digits/cascade --out seven.png

"""


def add(commands: Any) -> None:
    """Add `imagen sample` to the subcommands."""
    epilog = EXAMPLES + arguments.OUTPUT_HELP + "\n" + arguments.SET_HELP
    summary = "sample pictures from a trained cascade"
    arguments.add_shared(arguments.subcommand(commands, "sample", summary, epilog, make))
