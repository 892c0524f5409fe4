"""Arguments that all drawing commands share, and what they ask for."""

import argparse
import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagen.config import parse_yaml
from imagen.diffusion.config import KNOBS, SamplingConfig
from imagen.errors import ConfigError
from imagen.prompts import read_prompts

if TYPE_CHECKING:
    from imagen.sampling import SampleOptions

KEYS = tuple(f.name for f in dataclasses.fields(SamplingConfig))
SET: dict[str, Any] = {
    "metavar": "[MEMBER.]KEY=VALUE", "action": "append", "default": [], "dest": "settings",
}  # fmt: skip
OUTPUT_HELP = """\
what --out means
  x.png      one image: exactly its pixels; several: one labelled grid, enlarged for the eye
  folder/    every image by itself, exactly its pixels, named by number and prompt
Beside each picture lies NAME.json: command, prompts, seeds, how each member was sampled, cascade,
members and their training. Same cascade, prompt, seed and options: same picture, however many are
drawn with it.
"""
SET_HELP = f"""\
what --set knows: KEY=VALUE for all members, MEMBER.KEY=VALUE for one, which wins
  {", ".join(KEYS[:5])},
  {", ".join(KEYS[5:8])},
  {", ".join(KEYS[8:])}
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One image that is asked for."""

    prompt: str
    seed: int


def subcommand(
    commands: Any, name: str, summary: str, epilog: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with `epilog` as it is written; return its parser."""
    made = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run)
    return made


def add_shared(command: argparse.ArgumentParser) -> None:
    """Add what every drawing command takes."""
    add = command.add_argument
    add("prompt", metavar="PROMPT", nargs="*", help='what to draw; "" is no text')
    add("--prompts", metavar="FILE", help="text file with more prompts, one a line")
    add("--cascade", metavar="DIR", required=True, help="cascade folder or URL, by python -m eval")
    add("--out", metavar="FILE|DIR", required=True, help="picture, or folder of pictures")
    add("--count", type=int, default=1, help="images of each prompt (default 1)")
    add("--seed", type=int, default=0, help="image i of a prompt has seed + i (default 0)")
    add("--negative", metavar="TEXT", help="what guidance leads away from (default: no text)")
    add("--guidance-scale", type=float, help="weight of the text, 1 = off (default: as trained)")
    add("--steps", type=int, help="sampler steps (default: as configured)")
    add("--sampler", help=f"{', '.join(KNOBS)} (default: as configured)")
    add("--aug-level", type=float, help="noise on the low-resolution image, 0 to 1")
    add("--until", metavar="MEMBER", help="stop after this member, for example base")
    add("--set", **SET, help="sampling, as spacing=karras or sr1.steps=8; may be repeated")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of networks (default fp32)")
    add("--encoder", metavar="DIR", help="folder of the text encoder, if it lies elsewhere here")
    add("--members", action="store_true", help="show what every member made, in labelled grids")
    over = command.add_mutually_exclusive_group()
    over.add_argument("--overwrite", action="store_true", help="replace files that are there")
    text = "go on with a folder of pictures: make those that are not there"
    over.add_argument("--resume", action="store_true", help=text)


def wanted(args: argparse.Namespace) -> list[Wanted]:
    """Return the images that are asked for, prompt by prompt. Raises ConfigError."""
    prompts = list(args.prompt) + (read_prompts(args.prompts) if args.prompts else [])
    if not prompts:
        raise ConfigError(
            "no prompt was given",
            'give one, for example "seven" ("" is no text), or --prompts FILE',
        )
    if args.count < 1:
        raise ConfigError(f"--count {args.count} is less than 1")
    if not 0 <= args.seed <= 2**32 - args.count:
        raise ConfigError(f"--seed {args.seed} and the {args.count} from it are not in [0, 2^32)")
    return [Wanted(prompt, args.seed + i) for prompt in prompts for i in range(args.count)]


def settings(words: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return key -> value for all members, and member -> key -> value. Raises ConfigError.

    `words`: `KEY=VALUE` and `MEMBER.KEY=VALUE`.
    """
    for_all: dict[str, Any] = {}
    members: dict[str, dict[str, Any]] = {}
    for word in words:
        dotted, equals, value = word.partition("=")
        member, dot, key = dotted.rpartition(".")
        if not (equals and key) or (dot and not member):
            raise ConfigError(
                f"--set {word} is not of the form KEY=VALUE or MEMBER.KEY=VALUE",
                "for example --set spacing=karras or --set sr1.guidance_scale=1",
            )
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise ConfigError(
                f"--set {word}: members have no sampling key `{key}`",
                f"did you mean `{near[0]}`?" if near else f"keys: {', '.join(KEYS)}",
            )
        chosen = members.setdefault(member, {}) if member else for_all
        chosen[key] = parse_yaml(value, f"--set {word}")
    return for_all, members


def options(args: argparse.Namespace) -> "SampleOptions":
    """Return what the arguments say of sampling. Raises ConfigError."""
    for_all, members = settings(args.settings)
    from imagen.sampling import SampleOptions

    return SampleOptions(
        guidance_scale=args.guidance_scale,
        steps=args.steps,
        sampler=args.sampler,
        aug_level=args.aug_level,
        negative=args.negative,
        sampling=for_all,
        members=members,
        last=args.until,
        precision=args.precision,
    )
