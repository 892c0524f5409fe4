"""`python -m train ema CONFIG member=base --sigma-rel 0.07`: an EMA of another width."""

import argparse

from runtime.cli import add_config

TEXT = """\
Make the EMA weights of any width after the training, without training again.

How far the weights are averaged over the run (sigma_rel: the width as a share of the run) matters
as much for the pictures as the learning rate does, and the best width is only known afterwards. A
run whose train section has ema_profiles=[0.05,0.1] keeps two averages in each snapshot; from those
this command makes any other by least squares (arXiv:2312.02696, section 3.2), in seconds.

It writes a snapshot, which goes wherever one does: imagen.cascade.assemble, train's init_from."""

MORE = """\
examples:
  python -m train ema pipeline/configs/digits.yaml member=base --sigma-rel 0.07
  python -m train ema CONFIG member=base --sigma-rel 0.15 --at 40000     as of that snapshot
  python -m train ema CONFIG member=base --sigma-rel 0.03 --dry-run      how exact would it be?

what it prints: the error of the profile, as a share of it. Below 1 % nobody can tell the result
from an average that was kept in training; much above 10 % save snapshots more often. Widths between
those of ema_profiles are the most exact; narrower ones need dense snapshots. Keep all snapshots
(keep_snapshots=0): those that were deleted are missed."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m train ema",
        description=TEXT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument(
        "--sigma-rel", type=float, required=True, metavar="WIDTH", help="of the average, e.g. 0.07"
    )
    parser.add_argument(
        "--at", type=int, metavar="IMAGES", help="snapshot to make it for; default: the newest"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder or URL; default: <run>/ema/<images>-<width>"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say how exact it would be and stop; writes nothing"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Make an average, or say how exact it would be."""
    from train import posthoc  # imports torch: --help does without
    from train.commands.arguments import load

    config, member = load(args)
    run_dir = config.run_dir(member)
    steps = posthoc.plan(run_dir, args.sigma_rel, args.at)
    folder = args.out or posthoc.default_folder(run_dir, steps.images_seen, steps.sigma_rel)
    if not args.dry_run:
        posthoc.make(steps, folder)
    print(
        f"sigma_rel {steps.sigma_rel:g} at {steps.images_seen:,} images, from "
        f"{len(steps.profiles)} profiles, {steps.error:.2%} off: {folder}"
        + (" would be written" if args.dry_run else "")
    )
    return 0
