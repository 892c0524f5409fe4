"""The console command: `imagen sample "a handwritten seven" --cascade DIR --out seven.png`."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

import imagen
from imagen import picture, storage
from imagen.config import to_tree
from imagen.errors import ConfigError, ImagenError, StorageError
from imagen.prompts import read_prompts

if TYPE_CHECKING:  # torch costs seconds: `--help` and wrong arguments answer at once
    from imagen.cascade import Cascade, SampleOptions

BATCH_IMAGES = 16
"""Images sampled at a time. It decides memory and speed, never a picture."""
SLUG_CHARS = 40

EPILOG = """\
examples
  imagen sample "seven" --cascade runs/digits/cascade --out seven.png
  imagen sample "seven" "the digit 3" --count 4 --cascade runs/digits/cascade --out grid.png
  imagen sample --prompts prompts.txt --cascade runs/digits/cascade --out pictures/
  imagen sample "" --cascade runs/digits/cascade --out anything.png       (no text)

what --out means
  x.png      one image: exactly its pixels; several: one labelled grid, enlarged for the eye
  folder/    every image by itself, exactly its pixels, named by number and prompt
Beside each picture lies NAME.json: prompts, seeds, options, cascade, members and their training.
Same cascade, prompt, seed and options: same picture, however many are sampled with it.
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One image that is asked for."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Output:
    """One picture file, and which of the images it shows, row by row."""

    path: str
    rows: tuple[tuple[int, ...], ...]
    members: bool
    """Show what every member made, not only the last."""

    @property
    def images(self) -> list[int]:
        """Numbers of the images that it shows."""
        return [i for row in self.rows for i in row]

    @property
    def record(self) -> str:
        """Path of the provenance beside the picture."""
        return self.path.removesuffix(".png") + ".json"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the `imagen` command."""
    top = argparse.ArgumentParser(prog="imagen", description="Pictures from text.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sample = commands.add_parser(
        "sample",
        help="sample pictures from a trained cascade",
        description="Sample pictures from a trained cascade.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = sample.add_argument
    add("prompt", metavar="PROMPT", nargs="*", help='what to draw; "" is no text')
    add("--prompts", metavar="FILE", help="text file with more prompts, one a line")
    add("--cascade", metavar="DIR", required=True, help="cascade folder or URL, by python -m eval")
    add("--out", metavar="FILE|DIR", required=True, help="picture, or folder of pictures")
    add("--count", type=int, default=1, help="images of each prompt (default 1)")
    add("--seed", type=int, default=0, help="image i of a prompt has seed + i (default 0)")
    add("--guidance-scale", type=float, help="weight of the text, 1 = off (default: as trained)")
    add("--steps", type=int, help="sampler steps (default: as configured)")
    add("--sampler", help="ddim or dpmpp_2m (default: as configured)")
    add("--encoder", metavar="DIR", help="folder of the text encoder, if it lies elsewhere here")
    add("--members", action="store_true", help="show what every member made, in labelled grids")
    add("--overwrite", action="store_true", help="replace files that are there")
    return top


def wanted(args: argparse.Namespace) -> list[Wanted]:
    """Return the images that are asked for, prompt by prompt. Raises ConfigError."""
    prompts = list(args.prompt) + (read_prompts(args.prompts) if args.prompts else [])
    if not prompts:
        raise ConfigError("no prompt was given", 'give one, for example "seven", or --prompts FILE')
    if args.count < 1:
        raise ConfigError(f"--count {args.count} is less than 1")
    if not 0 <= args.seed <= 2**32 - args.count:
        raise ConfigError(f"--seed {args.seed} and the {args.count} from it are not in [0, 2^32)")
    return [Wanted(prompt, args.seed + i) for prompt in prompts for i in range(args.count)]


def plan(images: Sequence[Wanted], out: str, count: int, members: bool) -> list[Output]:
    """Return the files to write. Raises ConfigError when `out` is neither PNG nor folder."""
    suffix = re.search(r"\.\w{1,5}$", storage.name(out))
    if out.endswith("/") or not suffix or storage.listdir(out):
        digits = max(3, len(str(len(images) - 1)))
        names = [f"{i:0{digits}d}-{_slug(image.prompt)}.png" for i, image in enumerate(images)]
        return [Output(storage.join(out, name), ((i,),), members) for i, name in enumerate(names)]
    if suffix[0].lower() != ".png":
        raise ConfigError(
            f"--out {out} ends in {suffix[0]}, pictures are written as PNG",
            f"use {out.removesuffix(suffix[0])}.png, or a folder: {out}/",
        )
    rows = [tuple(range(i, i + count)) for i in range(0, len(images), count)]
    return [Output(out, tuple(rows), members)]


def _slug(prompt: str) -> str:
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    return words[:SLUG_CHARS].rstrip("-") or "no-text"


def refuse_overwriting(outputs: Sequence[Output]) -> None:
    """Raise StorageError when a file to write is there already."""
    there = [path for out in outputs for path in (out.path, out.record) if storage.exists(path)]
    if there:
        more = f" and {len(there) - 1} more exist" if len(there) > 1 else " exists"
        raise StorageError(
            f"`{there[0]}`{more} already; nothing was sampled",
            "choose another --out, or say --overwrite",
        )


@contextmanager
def _progress(images: int, members: int) -> Any:
    """Yield an `on_step` that draws on stderr, when that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}
        batches = -(-images // BATCH_IMAGES)

        def on_step(member: str, step: int, steps: int) -> None:
            del step
            if member not in tasks:
                name = f"{member} ({len(tasks) + 1} of {members})"
                tasks[member] = progress.add_task(name, total=steps * batches)
            progress.update(tasks[member], advance=1)

        yield on_step


def sample(
    cascade: "Cascade", images: Sequence[Wanted], options: "SampleOptions"
) -> dict[str, list[np.ndarray]]:
    """Return each member's pictures, uint8 (h, w, c), in the order of `images`."""
    from imagen.data.images import to_uint8

    made: dict[str, list[np.ndarray]] = {name: [] for name in cascade.members}
    with _progress(len(images), len(made)) as on_step:
        for start in range(0, len(images), BATCH_IMAGES):
            batch = images[start : start + BATCH_IMAGES]
            prompts, seeds = [i.prompt for i in batch], [i.seed for i in batch]
            for name, x0 in cascade.sample(prompts, seeds, options, on_step).items():
                made[name].extend(to_uint8(x0).permute(0, 2, 3, 1).cpu().numpy())
    return made


def draw(output: Output, images: Sequence[Wanted], made: dict[str, list[np.ndarray]]) -> bytes:
    """Return the PNG of one output: exact pixels of a single image, else a labelled grid."""
    shown = list(made) if output.members else list(made)[-1:]
    if len(output.images) * len(shown) == 1:
        return picture.png(picture.exact(made[shown[0]][output.images[0]]))
    rows = [[made[name][i] for i in row for name in shown] for row in output.rows]
    labels = [images[row[0]].prompt or "(no text)" for row in output.rows]
    seeds = [images[i].seed for i in output.rows[0]]
    prefixes = [f"{name}, " if output.members else "" for name in shown]
    columns = [f"{prefix}seed {seed}" for seed in seeds for prefix in prefixes]
    return picture.png(picture.grid(rows, labels, columns, picture.GridStyle(group=len(shown))))


def record(
    output: Output,
    images: Sequence[Wanted],
    cascade: "Cascade",
    options: "SampleOptions",
    facts: dict[str, Any],
) -> bytes:
    """Return the provenance JSON of one output: all that is needed to make it again."""
    settings = {}
    for name, member in cascade.members.items():
        used = to_tree(member.config.sampling)
        used |= {key: value for key, value in to_tree(options).items() if value is not None}
        settings[name] = {"size": member.config.size, **used}
    body = {
        "format": "imagen/picture/1",
        "images": [{"prompt": images[i].prompt, "seed": images[i].seed} for i in output.images],
        "sampling": settings,
        **facts,
        "cascade": cascade.provenance,
    }
    return json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"


def run(args: argparse.Namespace) -> None:
    """Sample as the command line says; print the path of each picture."""
    import torch

    from imagen.cascade import Cascade, SampleOptions

    images = wanted(args)
    options = SampleOptions(
        guidance_scale=args.guidance_scale, steps=args.steps, sampler=args.sampler
    )
    outputs = plan(images, args.out, args.count, args.members)
    if not args.overwrite:
        refuse_overwriting(outputs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cascade = Cascade.load(args.cascade, device, args.encoder)
    start = time.monotonic()
    made = sample(cascade, images, options)
    facts = {
        "cascade_path": args.cascade,
        "code_version": imagen.__version__,
        "seconds": round(time.monotonic() - start, 3),
        "images_sampled": len(images),
    }
    for output in outputs:
        storage.put(output.path, draw(output, images, made))
        storage.put(output.record, record(output, images, cascade, options, facts))
        print(output.path)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the `imagen` command and exit: 2 for a user's error, 130 for an interrupt."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except ImagenError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
