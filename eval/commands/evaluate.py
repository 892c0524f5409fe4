"""`python -m eval CONFIG`: sample the newest members of a cascade, judge, report."""

import argparse

from eval import lineups, stage, watching
from eval.config import EvalConfig
from eval.lineups import Lineup
from imagen.config import dump_yaml, load_config
from imagen.errors import ConfigError
from imagen.project import absolute, absolute_path
from runtime import cli

DESCRIPTION = """\
Evaluate a cascade: sample a fixed list of prompts with fixed seeds from the newest snapshot of
every member, judge the pictures, and write pictures, metrics.json and report.html.
"""
EPILOG = """\
what it needs   a prepared data set (python -m preencode) and snapshots
                (python -m train CONFIG member=base, then member=sr1, …)
what it writes  <out>/eval/report.html            one page about all checkpoints so far
                <out>/eval/<images>-<evaluation>/ grid.png, metrics.json, samples/, …
                <out>/cascade/                    what `imagen sample --cascade` takes
run again       finished: says so and does nothing; killed: goes on with the images that are left

  python -m eval CONFIG            the newest snapshot of every member
  python -m eval CONFIG --all      every checkpoint that has no result yet: for schedules
  python -m eval CONFIG --watch    the same, again and again until the trainings have finished
  python -m eval compare A B       two runs or checkpoints side by side
  python -m eval publish CONFIG TO a cascade with a model card, on a disk or a bucket
  python -m eval sample CASCADE …  thousands of prompts to tar shards or PNG files
  python -m eval statistics …      real images as numbers, to compare with (FID)
(each with --help)

how to read metrics.json
  digit_accuracy   share of pictures in which the judge sees the digit that was asked for, with
                   its 95 % interval; the judge learnt from real training images only, and what
                   it is not sure of counts as wrong
  members          the same for every member, so that you see what each adds or spoils
  text_use         accuracy against that of prompts dealt out at random
  distribution     how like the real images the samples are as a whole: Fréchet distance (fd) and
                   kernel distance (kid), lower is better; precision and recall, higher is better
  memorisation     distance of samples to their nearest training image against that of real
                   held-out images: a ratio of medians near 1 is drawing, far below 1 is copying

exit status: 0 done; 1 an evaluation failed, the others are done; 2 something in config or input

examples
  python -m eval pipeline/configs/digits.yaml
  python -m eval pipeline/configs/digits.yaml --dry-run
  python -m eval pipeline/configs/digits.yaml --watch
  python -m eval pipeline/configs/digits.yaml eval.guidance_scale=1.5 eval.count=500
  python -m eval CONFIG eval.prompts=prompts.txt eval.judge=none
  python -m eval CONFIG --snapshot runs/digits/base/ema/000000038400-0.05
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = cli.stage_parser("python -m eval", DESCRIPTION, EPILOG)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every checkpoint without a result")
    which.add_argument(
        "--watch", action="store_true", help="the same, as checkpoints come, until training ends"
    )
    which.add_argument(
        "--snapshot", metavar="DIR", action="append",
        help="this snapshot, with the newest ones of the members before it; may be repeated",
    )  # fmt: skip
    which.add_argument("--cascade", metavar="DIR", help="the members of this cascade directory")
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate as the command line says; return the exit status."""
    config = load_config(EvalConfig, args.config, args.overrides)
    if args.dry_run:
        print(dump_yaml(config))
        for line in stage.plan(config, _lineup(args, config)):
            print(f"# {line}")
        return 0
    if args.all or args.watch:
        return _many(args, config)
    lineup = _lineup(args, config)
    before = stage.state(config, lineup)
    after = stage.run(config, args.address, lineup)
    print(f"eval: {'done already' if before.status == 'done' else 'done'}, {after.detail}")
    for path in after.outputs:
        print(path)
    return 0


def _lineup(args: argparse.Namespace, config: EvalConfig) -> Lineup | None:
    if args.snapshot:
        return lineups.named(absolute(config), [absolute_path(path) for path in args.snapshot])
    return lineups.given(config, absolute_path(args.cascade)) if args.cascade else None


def _many(args: argparse.Namespace, config: EvalConfig) -> int:
    work = watching.watch if args.watch else watching.once
    came_to = work(config, args.address, watching.say)
    if not lineups.lineups(config) and not args.watch:
        raise ConfigError(
            f"no member of `{config.out}` has a snapshot yet",
            "run `python -m train CONFIG member=base`, or wait for it by --watch",
        )
    told = f"{len(came_to.done)} evaluated, {len(came_to.failed)} failed"
    print(f"eval: {told}, {len(came_to.taken)} in other hands")
    for name, reason in came_to.failed.items():
        print(f"failed: {name}: {reason}")
    return 1 if came_to.failed else 0
