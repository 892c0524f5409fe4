"""`python -m pipeline run CONFIG`: run what is not done yet."""

import argparse
from typing import TYPE_CHECKING

from pipeline.commands import arguments
from runtime import cli

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig
    from pipeline.run import Outcome

TEXT = """\
Run what is not done yet.

import -> preencode -> train base, train sr1, … (side by side) -> eval -> publish, on one local
Ray that the pipeline starts, or on the cluster at --address. What each stage is given is checked
before the first one starts.
"""
EPILOG = """\
Stages that are done are skipped, so the same command continues after any stop.

--address http://HEAD:8265  each stage is a Ray job, which is given this checkout and the config.
                            Ctrl-C and a closed laptop leave the jobs running: the same command
                            watches them again; `python -m pipeline stop line CONFIG` ends them
--address HOST:PORT         the stages are processes of this machine, which is one of the cluster's

examples:
  python -m pipeline run pipeline/configs/digits.yaml
  python -m pipeline run pipeline/configs/digits.yaml --dry-run
  python -m pipeline run pipeline/configs/digits.yaml out=runs/two seed=2
  python -m pipeline run pipeline/configs/digits.yaml --until preencode
  python -m pipeline run CONFIG out=gs://bucket/run --address http://127.0.0.1:8265
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    cli.add_config(parser)
    cli.add_run_options(parser)
    parser.add_argument("--only", metavar="STAGE", help="this stage alone; `train`: all trainings")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="it and what needs it")
    parser.add_argument("--until", dest="last", metavar="STAGE", help="it and what it needs")
    parser.add_argument(
        "--jobs", action="store_true", help="as Ray jobs of the cluster that this process runs on"
    )
    arguments.add_code(parser)


def run(args: argparse.Namespace) -> int:
    """Run the line, or say what would run; return the exit status."""
    from pipeline import addresses, report, stages
    from pipeline import config as configs  # here, so that --help is quick: stages import torch
    from pipeline import run as runner

    config = configs.load(args.config, args.overrides)
    line = stages.select(stages.line(config), args.only, args.first, args.last)
    if args.dry_run:
        print(runner.dry_run(line))
        return 0
    url = addresses.url_inside() if args.jobs else addresses.url_of(args.address)
    if url is None:
        outcome = runner.run(line, config.out, args.address)
    else:
        outcome = _as_jobs(args, config, url)
    if outcome.failed:
        cli.say(f"error: {' and '.join(outcome.failed)} failed")
        return 2 if set(outcome.failed.values()) == {2} else 1  # 2: a person can mend it
    report.summary(line, outcome, config.out)
    return 0


def _as_jobs(args: argparse.Namespace, config: "PipelineConfig", url: str) -> "Outcome":
    from pipeline import jobs, remote, stages, submitting

    shipment = submitting.ship(config, args.code)
    line = stages.select(shipment.stages(), args.only, args.first, args.last)
    try:
        return remote.run(jobs.Cluster(url), shipment, line)
    except KeyboardInterrupt:
        cli.say(
            "the jobs go on; this command watches them again, and\n"
            f"python -m pipeline stop line {' '.join(config.arguments)} stops them"
        )
        raise
