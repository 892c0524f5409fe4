"""`python -m pipeline logs STAGE CONFIG`: show what a job wrote."""

import argparse
import sys

from pipeline.commands import arguments

TEXT = """\
Show what the newest job of a stage wrote.

With --follow also what it writes until it ends.
"""
EPILOG = """\
examples:
  python -m pipeline logs train-base CONFIG --address http://127.0.0.1:8265
  python -m pipeline logs line CONFIG --follow
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    arguments.add_stage(parser, "line: the job that runs all stages")
    parser.add_argument("--follow", action="store_true", help="until the job ends")


def run(args: argparse.Namespace) -> int:
    """Print the log of a stage's newest job; return the exit status."""
    from imagen.errors import ConfigError
    from pipeline.commands.naming import jobs_named
    from pipeline.commands.waiting import wait
    from pipeline.following import Follower

    cluster = arguments.cluster(args)
    found = jobs_named(args, cluster)
    if not found:
        raise ConfigError(
            f"the cluster at `{cluster.address}` knows no job of {args.stage} for this `out`",
            f"submit one: python -m pipeline submit {args.stage} {args.config}",
        )
    if not args.follow:
        for job in found.values():
            sys.stdout.write(cluster.log(job[-1].id))
        return 0
    alone = len(found) == 1
    follower = Follower(cluster, lambda line: print(line, flush=True), named=not alone)
    for name, job in found.items():
        follower.add(name, job[-1])
    return wait(follower)
