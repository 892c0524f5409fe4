"""`python -m pipeline run CONFIG` and `python -m pipeline status CONFIG`."""

import argparse
import dataclasses
import sys

from runtime import cli

ORDER = """\
import -> preencode -> train base, train sr1, … (side by side) -> eval, on one local Ray
that the pipeline starts, or on the cluster at --address. What each stage is given is
checked before the first one starts.
"""
RUN = """\
Stages that are done are skipped, so the same command continues after any stop.

examples:
  python -m pipeline run pipeline/configs/digits.yaml
  python -m pipeline run pipeline/configs/digits.yaml --dry-run
  python -m pipeline run pipeline/configs/digits.yaml out=runs/two seed=2
"""
STATUS = """\
done     everything is there          partial  some work is left
stale    made from other inputs       missing  not started
running  a process is at work

example:
  python -m pipeline status pipeline/configs/digits.yaml --json
"""


def run(args: argparse.Namespace) -> int:
    """Run the line, or say what would run."""
    from pipeline import config as configs  # here, so that --help is quick: stages import torch
    from pipeline import report, stages
    from pipeline import run as runner

    config = configs.load(args.config, args.overrides)
    line = stages.line(config)
    if args.dry_run:
        print(runner.dry_run(line))
        return 0
    outcome = runner.run(line, config.out, args.address)
    if outcome.failed:
        print(f"error: {' and '.join(outcome.failed)} failed", file=sys.stderr)
        return 2 if set(outcome.failed.values()) == {2} else 1  # 2: a person can mend it
    report.summary(line, outcome, config.out)
    return 0


def status(args: argparse.Namespace) -> None:
    """Print how far each stage is."""
    from rich.console import Console

    from pipeline import config as configs
    from pipeline import stages
    from pipeline import status as shown

    line = stages.line(configs.load(args.config, args.overrides))
    states = [dataclasses.replace(stage.state(), stage=stage.name) for stage in line]
    if args.json:
        print(shown.as_json(states))
    else:
        Console().print(shown.table(states))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline", description="Run the stages in order, or see how far they are."
    )
    commands = top.add_subparsers(required=True, metavar="run|status")
    raw = argparse.RawDescriptionHelpFormatter
    about = "run what is not done yet"
    one = commands.add_parser(
        "run", help=about, description=f"{about}\n\n{ORDER}", epilog=RUN, formatter_class=raw
    )
    cli.add_config(one)
    cli.add_run_options(one)
    one.set_defaults(command=run)
    about = "tell how far each stage is"
    two = commands.add_parser(
        "status", help=about, description=about, epilog=STATUS, formatter_class=raw
    )
    cli.add_config(two)
    two.add_argument("--json", action="store_true", help="print a JSON list, for programs")
    two.set_defaults(command=status)
    return top


if __name__ == "__main__":
    cli.main(lambda args: args.command(args), parser())
