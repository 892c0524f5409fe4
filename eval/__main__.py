"""`python -m eval CONFIG`: sample the newest members of a cascade, judge, report."""

import argparse

from eval import stage
from eval.config import EvalConfig
from imagen.config import dump_yaml, load_config
from runtime import cli

DESCRIPTION = """\
Evaluate a cascade: assemble the newest snapshot of every member, sample a fixed list of prompts
with fixed seeds, judge the pictures, and write grid.png, metrics.json and report.html.
"""
EPILOG = """\
what it needs   a prepared data set (python -m preencode) and a snapshot of every member
                (python -m train CONFIG member=base, then member=sr1, …)
what it writes  <out>/cascade/                 what `imagen sample --cascade` takes
                <out>/eval/<images>-<cascade>/ grid.png, metrics.json, report.html, samples/
run again       finished: says so and does nothing; killed: goes on with the images that are left

how to read metrics.json
  digit_accuracy   share of pictures in which the judge sees the digit that was asked for, with
                   its 95 % interval; the judge learnt from real training images only, and what
                   it is not sure of counts as wrong
  members          the same for every member, so that you see what each adds or spoils
  text_use         accuracy against that of prompts dealt out at random
  memorisation     distance of samples to their nearest training image against that of real
                   held-out images: a ratio of medians near 1 is drawing, far below 1 is copying

examples
  python -m eval pipeline/configs/digits.yaml
  python -m eval pipeline/configs/digits.yaml --dry-run
  python -m eval pipeline/configs/digits.yaml eval.guidance_scale=1.5 eval.count=500
  python -m eval CONFIG eval.prompts=prompts.txt eval.judge=none
"""


def run(args: argparse.Namespace) -> None:
    """Evaluate as the command line says."""
    config = load_config(EvalConfig, args.config, args.overrides)
    if args.dry_run:
        print(dump_yaml(config))
        for line in stage.plan(config):
            print(f"# {line}")
        return
    before = stage.state(config)
    after = stage.run(config, args.address)
    print(f"eval: {'done already' if before.status == 'done' else 'done'}, {after.detail}")
    for path in after.outputs:
        print(path)


if __name__ == "__main__":
    cli.main(run, cli.stage_parser("python -m eval", DESCRIPTION, EPILOG))
