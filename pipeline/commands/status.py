"""`python -m pipeline status CONFIG`: tell how far each stage is, how fast, and what it took."""

import argparse
import sys

from pipeline.commands import arguments
from runtime import cli

TEXT = """\
Tell how far each stage is, how fast it goes and what it took so far.

All of it is read from the files that the stages leave; with the address of a cluster, or
$RAY_API_SERVER_ADDRESS, also the newest job of each stage. Nothing is changed.
"""
EPILOG = """\
done     everything is there          partial  some work is left
stale    made from other inputs       missing  not started
running  a process of this machine is at work

left     time to the end at the last rate
cost     by pipeline/prices.yaml, or the table that --prices names; a --machine with GPUs is counted
         for what GPUs did, one without for what cores did

examples:
  python -m pipeline status pipeline/configs/digits.yaml
  python -m pipeline status pipeline/configs/digits.yaml --json
  python -m pipeline status gs://my-bucket/run/digits.yaml --address http://127.0.0.1:8265
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    cli.add_config(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list, for programs")
    parser.add_argument("--address", metavar="URL", help="dashboard of a cluster that runs jobs")
    add_prices(parser)


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Add what says which prices count."""
    parser.add_argument("--prices", metavar="FILE", help="price table in place of prices.yaml")
    told = "machine of that table to count with; one with GPUs only for what GPUs do"
    parser.add_argument("--machine", metavar="NAME", help=told)


def run(args: argparse.Namespace) -> None:
    """Print how far each stage is."""
    from rich.console import Console

    from pipeline import config as configs  # here, so that --help is quick: stages import torch
    from pipeline import jobs, prices, stages
    from pipeline import status as shown

    config = configs.load(args.config, args.overrides)
    known = prices.load(args.prices)
    url = arguments.url(args)
    running = None
    try:
        running = jobs.Cluster(url).of(config.out) if url else None
    except jobs.Unreachable as err:  # how far the stages are is in their files
        print(f"without jobs: {err.message}", file=sys.stderr)
    rows = shown.rows(config, stages.line(config), known, args.machine, running)
    if args.json:
        print(shown.as_json(rows))
        return
    console = Console(highlight=False)
    console.print(shown.table(rows, config.out))
    for note in shown.notes(rows, known):
        console.print(note, style="dim")
