"""`imagen edit IMAGE PROMPT…`: image-to-image, variations, and inpainting under a mask."""

import argparse
from typing import TYPE_CHECKING, Any

from imagen import photo
from imagen.cli import arguments
from imagen.cli.making import Described, make
from imagen.errors import ConfigError

if TYPE_CHECKING:
    from imagen.editing import Edit

EXAMPLES = """\
examples
  imagen edit seven.png "the digit 1" --cascade runs/digits/cascade --out one.png
  imagen edit seven.png "seven" --strength 0.4 --count 8 --cascade runs/digits/cascade \\
      --out variations.png
  imagen edit seven.png "the digit 1" --mask mask.png --cascade runs/digits/cascade --out one.png

what happens to the picture
  It is turned upright, laid on white, cut to the centre of the cascade's shape and scaled down;
  it is never enlarged. Each member starts from it with noise added: --strength 0.2 changes
  details, 0.6 (the default) draws it again.
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
        "--strength", type=float, help="how far from the picture, in (0, 1) (default 0.6; mask: 1)"
    )
    command.add_argument("--mask", metavar="FILE", help="picture that is white where to paint anew")


def run(args: argparse.Namespace) -> None:
    """Edit as the command line says. Raises ImagenError."""
    _check_strength(args.strength, args.mask)
    picture = photo.read(args.image)
    mask = None if args.mask is None else photo.read(args.mask)

    def editing(described: Described) -> "tuple[Edit, dict[str, Any]]":
        from imagen.editing import of_photos

        edit = of_photos((picture, mask), described.members, args.strength, last=args.until)
        return edit, {
            "image": picture.facts,
            "mask": None if mask is None else mask.facts,
            "strength": edit.start,
            "resample": None if mask is None else edit.rounds,
        }

    make(args, editing)


def _check_strength(strength: float | None, mask: str | None) -> None:
    """Raise ConfigError for what `Edit` would refuse, before torch is imported."""
    if strength is None:
        return
    if not 0 < strength <= 1:
        raise ConfigError(
            f"--strength {strength:g} is not in (0, 1]",
            "1 starts from noise alone, 0.2 changes details",
        )
    if strength == 1 and mask is None:
        raise ConfigError(
            "--strength 1 without --mask starts from noise alone: the picture would have no effect",
            "0.6 draws it again, 0.2 changes details; `imagen sample` draws from text alone",
        )
