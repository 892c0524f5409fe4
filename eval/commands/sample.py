"""`python -m eval sample CASCADE --prompts FILE --out DIR`: thousands of pictures, on Ray."""

import argparse

from eval import bulk, lineups, sampling
from eval.config import EvalSection
from eval.prompts import Item
from imagen import cascade, manifest, storage
from imagen.cli.arguments import settings
from imagen.config import build
from imagen.errors import CheckpointError, ConfigError
from imagen.project import absolute_path
from imagen.prompts import read_prompts
from imagen.sampling import SampleOptions
from imagen.text.config import TextConfig
from runtime import progress, session
from runtime.cli import add_run_options

TEXT = """\
Sample every prompt of a file from a cascade, on all workers of a Ray, into WebDataset tar shards or
PNG files. Killed or stopped, the same command goes on with the shards that are left, and ends with
the same bytes. One or a few pictures: `imagen sample`.
"""
MORE = """\
examples
  python -m eval sample runs/digits/cascade --prompts prompts.txt --out runs/digits/samples
  python -m eval sample gs://bucket/published --prompts gs://bucket/coco30k.txt \\
      --out gs://bucket/samples --seed 7 --set base.guidance_scale=1.35 --address auto
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m eval sample",
        description=TEXT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("cascade", metavar="CASCADE", help="cascade folder or URL")
    add("--prompts", metavar="FILE", required=True, help="text file, one prompt a line")
    add("--out", metavar="DIR", required=True, help="folder or URL that the pictures go to")
    add("--format", choices=("tar", "png"), default="tar", help="tar shards (default) or PNG files")
    add("--count", type=int, default=1, help="images of each prompt (default 1)")
    add("--seed", type=int, default=0, help="image i of all has seed + i (default 0)")
    add("--shard-images", type=int, default=500, help="images of a shard (default 500)")
    add("--set", metavar="[MEMBER.]KEY=VALUE", action="append", default=[], dest="settings",
        help="sampling, as steps=32 or base.guidance_scale=2; may be repeated")  # fmt: skip
    add_run_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Sample as the command line says."""
    args.cascade, args.out = absolute_path(args.cascade), absolute_path(args.out)
    order, source = _order(args), _source(args.cascade)
    if args.dry_run:
        shards = len(order.packs(args.out))
        print(f"{len(order.items)} images in {shards} shards of {args.format} in {args.out}")
        return
    left = bulk.begin(args.out, order)
    if left:
        images = sum(len(pack.items) for pack in left)
        with session.connect(args.address), progress.bar("sample", images, "images") as bar:
            sampling.sample_missing(source, left, bar.advance)
    bulk.finish(args.out, order)
    print(storage.join(args.out, bulk.MANIFEST))


def _order(args: argparse.Namespace) -> bulk.Order:
    for name, least in (("count", 1), ("shard_images", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} is less than {least}")
    prompts = [p for p in read_prompts(args.prompts) for _ in range(args.count)]
    if args.seed + len(prompts) > 2**32:
        raise ConfigError(f"--seed {args.seed} and the {len(prompts)} from it are not in [0, 2^32)")
    for_all, members = settings(args.settings)
    items = tuple(Item(prompt, args.seed + i) for i, prompt in enumerate(prompts))
    options = SampleOptions(sampling=for_all, members=members)
    return bulk.Order(_body(args.cascade)["fingerprint"], items, options, args.format,
                      args.shard_images)  # fmt: skip


def _body(folder: str) -> dict:
    path = storage.join(folder, cascade.MANIFEST)
    return manifest.read(path, "cascade", CheckpointError)


def _source(folder: str) -> sampling.Source:
    text = build(TextConfig, _body(folder)["text"], folder)
    return sampling.Source(lineups.of_cascade(folder), text, EvalSection())
