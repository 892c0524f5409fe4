"""`python -m pipeline plan CONFIG`: what a run would do, take and cost."""

import argparse

from pipeline.commands.status import add_prices
from runtime import cli

TEXT = """\
Tell what a run would do and why, and what it takes: GPU-hours, money, storage, requests.

Rates are measured by this run's own logs where there are any, also those of another card by their
share of its peak; else assumed, and marked so. Works before there is any data. Changes nothing.
"""
EPILOG = """\
prices   pipeline/prices.yaml says where and when they were found: edit it, or a copy for --prices
machine  which one each stage is counted on is in that table; a --machine NAME with GPUs counts for
         the stages that use GPUs, one without for all of them: each core is a worker then

examples:
  python -m pipeline plan pipeline/configs/shapes.yaml
  python -m pipeline plan pipeline/configs/shapes.yaml --machine g2-standard-8
  python -m pipeline plan pipeline/configs/shapes.yaml train.base.images=100e6 --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    cli.add_config(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    add_prices(parser)


def run(args: argparse.Namespace) -> None:
    """Print the plan."""
    from rich.console import Console

    from pipeline import config as configs  # here, so that --help is quick: stages import torch
    from pipeline import plan as planned
    from pipeline import prices, stages

    config = configs.load(args.config, args.overrides)
    known = prices.load(args.prices)
    found = planned.plan(config, stages.line(config), known, args.machine)
    if args.json:
        print(planned.as_json(found))
        return
    console = Console(highlight=False)
    console.print(planned.table(found))
    console.print(planned.storage_table(found))
    for line in planned.lines(found):
        console.print(line, markup=False)
