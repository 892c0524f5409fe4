"""`python -m pipeline schedule STAGE CONFIG --every 30m`: submit a stage again and again."""

import argparse
import os
import shlex
import sys
import time

from pipeline.commands import arguments
from runtime import cli

TEXT = """\
Submit a stage to a cluster every so often, for example an evaluation of what training has made.

Runs until Ctrl-C, also through times when the cluster or the bucket does not answer, or when the
stage is run with other settings; a mistake in the config ends it. A tick that comes while the stage
is being run does nothing; missed ones are left out; two schedules of one stage run it once.
"""
EPILOG = """\
--crontab prints the line for `crontab -e` instead, which does the same without a terminal.
On Kubernetes: infra/kuberay/eval-cron.yaml

examples:
  python -m pipeline schedule eval CONFIG --every 30m --address http://127.0.0.1:8265
  python -m pipeline schedule eval CONFIG --every 6h --crontab
"""
KEPT = ("PYTHONPATH", "GOOGLE_APPLICATION_CREDENTIALS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
"""Of the environment, which cron does not have, what the line sets: paths, no secrets."""
USUAL = {"eval": "--all"}
"""Options that a stage has on a schedule, unless others are given."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    arguments.add_stage(parser, "line: all stages in order")
    arguments.add_shipping(parser)
    parser.set_defaults(options=None)
    parser.add_argument(
        "--every", required=True, metavar="TIME", help="90s, 30m, 6h, 1d: from now on"
    )
    parser.add_argument("--crontab", action="store_true", help="print the line for cron and stop")


def run(args: argparse.Namespace) -> None:
    """Submit the stage again and again, or print how cron does."""
    from pipeline import schedule

    every_s = schedule.seconds(args.every)
    if args.options is None:
        args.options = USUAL.get(args.stage, "")
    if args.crontab:
        print(_crontab(args, schedule.crontab(every_s)))
    else:
        schedule.loop(lambda: _tick(args), every_s)


def _tick(args: argparse.Namespace) -> None:
    """Submit the stage unless it is being run; a mistake in the config ends the schedule."""
    from imagen.errors import StorageError
    from pipeline.commands.submit import submitted
    from pipeline.jobs import Unreachable
    from pipeline.submitting import NotNow

    try:
        shipment = arguments.shipment(args)  # again: the file or the code may have changed
        cluster = arguments.cluster(args)
        _tell_failed(cluster.of(shipment.out), args.stage)
        submitted(args.stage, arguments.options(args), cluster, shipment)
    except (Unreachable, StorageError, NotNow) as err:
        cli.say(f"{time.strftime('%H:%M')} not submitted, next time again: {err.message}")


def _tell_failed(known: dict, stage: str) -> None:
    """Tell what became of the job of the last tick, if that was not good."""
    for name, found in known.items():
        if name.replace(" ", "-") == stage and found[-1].status == "FAILED":
            last = found[-1].message.strip().splitlines()[-1:]
            cli.say(f"{name}: job {found[-1].id} failed: {' '.join(last)}")


def _crontab(args: argparse.Namespace, when: str) -> str:
    """Return a line of a crontab that submits the stage. Raises ConfigError."""
    _check(args)
    words = [sys.executable, "-m", "pipeline", "submit", args.stage, args.config, *args.overrides]
    words += ["--address", arguments.some_url(args), f"--code={args.code}"]
    words += [f"--options={args.options}"] if args.options else []
    given = [f"{name}={shlex.quote(os.environ[name])}" for name in KEPT if name in os.environ]
    command = " ".join(["cd", shlex.quote(os.getcwd()), "&&", *given, shlex.join(words)])
    return f"{when} {command}".replace("%", r"\%")  # to cron it is the end of the line


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for a config or a stage that could never be submitted."""
    from pipeline import jobs, stages
    from pipeline.commands.submit import part

    line = arguments.shipment(args).stages()
    if args.stage == jobs.LINE:
        part(line, arguments.options(args))
    else:
        stages.select(line, only=args.stage)
