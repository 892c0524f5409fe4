"""`imagen upscale IMAGE PROMPT`: super-resolution of a given picture."""

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
  imagen upscale small.png "seven" --cascade runs/digits/cascade --out large.png
  imagen upscale small.png "seven" --aug-level 0.3 --count 4 --cascade runs/digits/cascade \\
      --out grid.png
  imagen upscale photo.jpg "a dog" --from sr2 --cascade runs/photos/cascade --out large.png

what happens to the picture
  It is turned upright, laid on white, cut to the centre of the cascade's shape and scaled down to
  the input of the member that --from names: the size that the member before it draws. It is never
  enlarged before. --aug-level is the noise added to it: more leaves more to imagination.

"""


def add(commands: Any) -> None:
    """Add `imagen upscale` to the subcommands."""
    epilog = EXAMPLES + arguments.OUTPUT_HELP + "\n" + arguments.SET_HELP
    summary = "super-resolve a picture"
    command = arguments.subcommand(commands, "upscale", summary, epilog, run)
    command.add_argument("image", metavar="IMAGE", help="picture to enlarge, a path or URL")
    arguments.add_shared(command)
    command.add_argument(
        "--from", metavar="MEMBER", default="sr1", dest="first",
        help="super-resolution member to start with (default sr1)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Upscale as the command line says. Raises ImagenError."""
    picture = photo.read(args.image)

    def editing(described: Described) -> "tuple[Edit, dict[str, Any]]":
        from imagen.editing import of_photos

        names = list(described.members)
        if args.first not in names[1:]:
            raise ConfigError(
                f"--from {args.first} is no super-resolution member of the cascade, which has "
                f"{', '.join(names)}",
                "`imagen edit` starts at the base",
            )
        if args.until in names[: names.index(args.first)]:
            raise ConfigError(
                f"--until {args.until} stops before --from {args.first} starts",
                f"members, in order: {', '.join(names)}",
            )
        edit = of_photos((picture, None), described.members, None, args.first, args.until)
        return edit, {"image": picture.facts, "first": args.first}

    make(args, editing)
