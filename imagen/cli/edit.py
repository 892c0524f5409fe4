"""`imagen edit IMAGE PROMPT…`: image-to-image, variations, and inpainting under a mask."""

import argparse
from typing import TYPE_CHECKING, Any

from imagen.cli import arguments, given
from imagen.cli.making import Described, make
from imagen.errors import ConfigError

if TYPE_CHECKING:
    from imagen.cascade import Edit

STRENGTH = 0.6
"""Default of `--strength` without a mask; under a mask it is 1."""
EXAMPLES = """\
examples
  imagen edit seven.png "the digit 1" --cascade runs/digits/cascade --out one.png
  imagen edit seven.png "seven" --strength 0.4 --count 8 --cascade runs/digits/cascade \\
      --out variations.png
  imagen edit seven.png "the digit 1" --mask mask.png --cascade runs/digits/cascade --out one.png

what happens to the picture
  It is turned upright, laid on white, cut to the centre of the cascade's shape and scaled down;
  it is never enlarged. Each member starts from it with noise added: --strength 1 is all noise,
  0.2 changes details (default 0.6).
  --mask FILE is as large as the picture. White is painted anew (default strength 1), black keeps
  the picture's pixels exactly (RePaint).

"""


def add(commands: Any) -> None:
    """Add `imagen edit` to the subcommands."""
    epilog = EXAMPLES + arguments.OUTPUT_HELP + "\n" + arguments.SET_HELP
    summary = "draw a picture again, or a part of it, after a prompt"
    command = arguments.subcommand(commands, "edit", summary, epilog, run)
    command.add_argument("image", metavar="IMAGE", help="picture to start from, a path or URL")
    arguments.add_shared(command)
    command.add_argument(
        "--strength", type=float, help="how far from the picture, in (0, 1] (default 0.6; mask: 1)"
    )
    command.add_argument("--mask", metavar="FILE", help="picture that is white where to paint anew")


def run(args: argparse.Namespace) -> None:
    """Edit as the command line says. Raises ImagenError."""
    strength = args.strength
    if strength is None:
        strength = STRENGTH if args.mask is None else 1.0
    if not 0 < strength <= 1:
        raise ConfigError(
            f"--strength {strength:g} is not in (0, 1]",
            "1 starts from noise alone, 0.2 changes details",
        )
    picture = given.read(args.image)
    mask = None if args.mask is None else given.read(args.mask)

    def editing(described: Described) -> "tuple[Edit, dict[str, Any]]":
        from imagen.cascade import Edit

        member = described.drawn(args.until)
        edit = Edit(
            image=given.image(picture, member.shape, member.network.channels),
            mask=None if mask is None else given.mask(mask, picture, member.shape),
            strength=strength,
        )
        return edit, {
            "image": picture.facts,
            "mask": None if mask is None else mask.facts,
            "strength": strength,
            "resample": None if mask is None else edit.resample,
        }

    make(args, editing)
