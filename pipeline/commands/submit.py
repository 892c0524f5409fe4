"""`python -m pipeline submit STAGE CONFIG`: run one stage, or the whole line, as a job."""

import argparse
from typing import TYPE_CHECKING

from imagen.errors import ConfigError
from pipeline.commands import arguments
from runtime import cli

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.jobs import Cluster
    from pipeline.stages import Stage
    from pipeline.submitting import Shipment

TEXT = """\
Submit a stage to a cluster as a Ray job.

The config is checked here, before anything is submitted. A stage that is being run already is not
run twice: then the id of that job is printed.
"""
EPILOG = """\
line    one job on the head that runs all stages as `python -m pipeline run` does, each as a job
        of its own: this machine can be switched off

The id of the job goes to stdout. What it writes: python -m pipeline logs STAGE CONFIG

examples:
  python -m pipeline submit line CONFIG --address http://127.0.0.1:8265
  python -m pipeline submit train-base CONFIG out=gs://bucket/run --follow
  python -m pipeline submit eval CONFIG --options=--all
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    arguments.add_stage(parser, "line: all stages in order")
    arguments.add_shipping(parser)
    parser.add_argument("--follow", action="store_true", help="show what it writes until it ends")


def run(args: argparse.Namespace) -> int:
    """Submit what the command line names; return the exit status."""
    from pipeline import following
    from pipeline.commands.waiting import wait

    shipment = arguments.shipment(args)
    cluster = arguments.cluster(args)
    follower = following.Follower(cluster)
    for name, job in submitted(args.stage, arguments.options(args), cluster, shipment).items():
        print(job, flush=True)
        if args.follow:
            found = cluster.info(job)
            assert found is not None, "it was submitted just now"
            follower.add(name, found)
    return wait(follower)


def part(line: "Sequence[Stage]", options: list[str]) -> "list[Stage]":
    """Return the stages that options of `run` choose. Raises ConfigError."""
    from pipeline import stages
    from pipeline.commands import run as run_command

    known = argparse.ArgumentParser("--options", exit_on_error=False, add_help=False)
    run_command.add(known)
    try:
        args, rest = known.parse_known_args(["CONFIG", *options])
    except argparse.ArgumentError as err:
        raise ConfigError(f"--options: {err}", "see python -m pipeline run --help") from err
    if rest or args.overrides:
        wrong = " ".join([*rest, *args.overrides])
        raise ConfigError(f"--options: `run` takes no `{wrong}` there", "overrides follow CONFIG")
    return stages.select(line, args.only, args.first, args.last)


def submitted(
    stage: str, options: list[str], cluster: "Cluster", shipment: "Shipment"
) -> dict[str, str]:
    """Submit what a word of the command line stands for; return the ids of the jobs by stage."""
    from pipeline import jobs, stages, submitting

    line, ids = shipment.stages(), {}
    if stage == jobs.LINE:
        path = shipment.config.path
        submitting.check_line(cluster, shipment, part(line, options))
        words = ("-m", "pipeline", "run", path, "--jobs", f"--code={shipment.code}", *options)
        chosen = [(jobs.LINE, words)]
    else:
        picked = stages.select(line, only=stage)
        for one in picked:
            whole = next(each for each in line if each.name == one.name)
            submitting.check(whole, line, shipment.config, options)
        chosen = [(one.name, (*one.arguments, *options)) for one in picked]
    for name, words in chosen:
        job, fresh = submitting.submit(cluster, shipment, name, words)
        how = "submitted as" if fresh else "is run already by"
        cli.say(f"{name}: {how} job {job.id}")
        ids[name] = job.id
    return ids
