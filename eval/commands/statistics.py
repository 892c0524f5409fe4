"""`python -m eval statistics SOURCE`: real images as numbers that samples are compared with."""

import argparse
import hashlib
from collections import Counter
from dataclasses import replace

from eval import extractors, inception, originals, reference, statistics
from eval.config import EvalConfig, FeaturesConfig
from eval.originals import PreparedSource, Source
from eval.yardstick import device
from imagen import storage
from imagen.config import load_config
from imagen.errors import ConfigError, ShardError
from imagen.project import absolute
from runtime import progress

TEXT = """\
Write the statistics of real images in the features of a network, for eval.features.reference, and
a file of captions to sample from, for eval.prompts.

SOURCE is a config (its prepared data set), a folder or URL of WebDataset tars, one .tar, or a
folder or URL of images. Images are cut in the middle and scaled to one size; what cannot be read,
or is smaller, is left out and counted.
"""
MORE = """\
examples
  python -m eval statistics CONFIG --network inception --split train --out train.safetensors
  python -m eval statistics gs://b/coco/val2014 --network inception --size 256 \\
      --out coco.safetensors --captions coco.txt --count 30000

FID-30K
  then evaluate with eval.prompts=coco.txt eval.count=30000 eval.judge=none
  eval.features.network=inception eval.features.reference=coco.safetensors; see docs/evaluation.md
"""
_SPLITS = {"train": ("train",), "heldout": ("heldout",), "all": ("train", "heldout")}


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m eval statistics",
        description=TEXT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="config, tars or images; paths or URLs")
    parser.add_argument(
        "overrides", metavar="a.b=c", nargs="*", help="set a key of the config, e.g. seed=7"
    )
    parser.add_argument("--out", help="file to write, .safetensors; without it captions alone")
    parser.add_argument(
        "--network", help="inception (default), or package.module:function; CONFIG's for a config"
    )
    parser.add_argument("--weights", default="", help="path of inception's weights")
    parser.add_argument("--split", choices=_SPLITS, default="heldout", help="of a config (heldout)")
    parser.add_argument("--size", type=int, help="pixels a side; for a config: its last member's")
    parser.add_argument("--captions", metavar="FILE", help="write captions, one a line")
    parser.add_argument("--count", type=int, default=30_000, help="captions to choose (30000)")
    parser.add_argument("--seed", type=int, default=0, help="decides which captions (0)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done and stop; changes nothing"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Write what is asked for and is not there yet; return the exit status."""
    source, look, features = _inputs(args)
    if not args.out and not args.captions:
        raise ConfigError("nothing is asked for", "give --out FILE, --captions FILE, or both")
    if args.dry_run:
        print(f"source      {source.what}")
        print(f"images      cut and scaled to {look.size} px, features of {look.network}")
        print(*(f"to write    {path}" for path in (args.out, args.captions) if path), sep="\n")
        return 0
    if args.captions:
        _write_captions(args, source)
    if args.out:
        _write_statistics(args.out, source, look, features)
    return 0


def _inputs(args: argparse.Namespace) -> tuple[Source, statistics.Look, FeaturesConfig]:
    """Return what the arguments name. Raises ImagenError."""
    features = FeaturesConfig(network=args.network or extractors.INCEPTION, weights=args.weights)
    if args.source.endswith((".yaml", ".yml")):
        config = absolute(load_config(EvalConfig, args.source, args.overrides))
        if args.network is None and extractors.has_network(config.eval.features):
            features = replace(config.eval.features, reference="")
        source: Source = PreparedSource(reference.open_data(config.index), _SPLITS[args.split])
        last = list(config.members.values())[-1]
        size, channels = args.size or last.shape, last.network.channels
    else:
        source, size, channels = originals.find(args.source.rstrip("/")), args.size, 3
    if args.out and not size:
        raise ConfigError(
            "images of a folder have no one size", "give --size PIXELS, that of the samples"
        )
    if not extractors.has_network(features):
        raise ConfigError(
            f"statistics by {features.network!r} need no file: they are made by each evaluation",
            "give --network inception, or package.module:function",
        )
    network = extractors.network_fingerprint(features) if args.out else "none"
    return source, statistics.Look(size, channels, network), features


def _write_statistics(
    path: str, source: Source, look: statistics.Look, features: FeaturesConfig
) -> None:
    if storage.exists(path) and statistics.load(path).identity == look.identity(source):
        print(f"{path}: is there already")
        return
    if features.network == extractors.INCEPTION:
        inception.check(features.weights)
    extract = extractors.load(features, device())
    with progress.bar("look at", None, "images") as bar:
        found = statistics.gather(source, look, extract, bar.advance)
    statistics.save(path, found)
    print(f"{path}: {found.what}, {len(found.gaussian.mean)} features of {found.network}")
    for reason, count in found.unreadable.items():
        print(f"left out    {count:,}: {reason}")


def _write_captions(args: argparse.Namespace, source: Source) -> None:
    """Write the captions whose images' names have the smallest hashes with the seed."""
    bad, ranked = Counter[str](), []
    for original in source.read(bad):
        caption = " ".join((original.caption or "").split())
        if not caption:
            bad["no caption"] += 1
            continue
        name = original.name.encode("utf8", "surrogateescape")
        ranked.append((hashlib.sha256(b"%d/%s" % (args.seed, name)).digest(), caption))
    if not ranked:
        raise ShardError(f"no {source.what} have captions: {dict(bad) or 'there are none'}")
    chosen = [caption for _, caption in sorted(ranked)[: args.count]]
    storage.put(args.captions, "".join(f"{line}\n" for line in chosen).encode("utf8"))
    print(f"{args.captions}: {len(chosen):,} of {len(ranked):,} captions")
    for reason, count in sorted(bad.items()):
        print(f"left out    {count:,}: {reason}")
