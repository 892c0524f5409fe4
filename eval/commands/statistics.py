"""`python -m eval statistics SOURCE`: real images as numbers that samples are compared with."""

import argparse
import hashlib
import sys
from collections import Counter
from dataclasses import replace

from eval import extractors, inception, originals, reference, statistics
from eval.config import EvalConfig, FeaturesConfig
from eval.originals import Original, PreparedSource, Source
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
or is smaller, is left out and counted. With --size or --out captions are chosen among the images
that are left.
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
    captions = _Captions(args.seed) if args.captions else None
    if args.out:
        _write_statistics(args.out, source, look, features, captions)
    elif captions is not None:
        captions.read(source, look if args.size else None)
    if captions is not None:
        captions.write(args.captions, source, args.count)
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
    path: str,
    source: Source,
    look: statistics.Look,
    features: FeaturesConfig,
    captions: "_Captions | None",
) -> None:
    """Write statistics that are not there yet, and collect the captions of the images in them."""
    if storage.exists(path) and statistics.load(path).identity == look.identity(source):
        print(f"{path}: is there already")
        if captions is not None:
            captions.read(source, look)
        return
    if features.network == extractors.INCEPTION:
        inception.check(features.weights)
    extract = extractors.load(features, device())
    used = (lambda _: None) if captions is None else captions.add
    with progress.bar("look at", None, "images") as bar:
        found = statistics.gather(source, look, extract, bar.advance, used)
    statistics.save(path, found)
    print(f"{path}: {found.what}, {len(found.gaussian.mean)} features of {found.network}")
    for reason, count in found.unreadable.items():
        print(f"left out    {count:,}: {reason}")


class _Captions:
    """Captions of images, to choose those whose images' names have the smallest hashes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._bad, self._ranked = Counter[str](), list[tuple[bytes, str]]()

    def read(self, source: Source, look: statistics.Look | None) -> None:
        """Collect the captions of all images, or of those that statistics of a look use."""
        if look is None:
            found = source.read(self._bad, pictures=False)
        else:
            found = (original for original, _ in statistics.usable(source, look, self._bad))
        for original in found:
            self.add(original)

    def add(self, original: Original) -> None:
        """Collect a caption, or count that there is none."""
        caption = " ".join((original.caption or "").split())
        if not caption:
            self._bad["no caption"] += 1
            return
        name = original.name.encode("utf8", "surrogateescape")
        rank = hashlib.sha256(b"%d/%s" % (self._seed, name)).digest()
        self._ranked.append((rank, caption))

    def write(self, path: str, source: Source, count: int) -> None:
        """Write the chosen captions, one a line. Raises ShardError when there are none."""
        if not self._ranked:
            reason = dict(self._bad) or "there are none"
            raise ShardError(f"no {source.what} have captions: {reason}")
        chosen = [caption for _, caption in sorted(self._ranked)[:count]]
        storage.put(path, "".join(f"{line}\n" for line in chosen).encode("utf8"))
        print(f"{path}: {len(chosen):,} of {len(self._ranked):,} captions")
        for reason, left_out in sorted(self._bad.items()):
            print(f"left out    {left_out:,}: {reason}")
        if len(chosen) < count:
            print(
                f"warning: `{path}` has {len(chosen):,} captions where {count:,} were asked for: "
                f"there are no more",
                file=sys.stderr,
            )
