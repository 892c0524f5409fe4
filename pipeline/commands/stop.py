"""`python -m pipeline stop STAGE CONFIG`: end a job in order."""

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.commands import arguments
from runtime import cli

if TYPE_CHECKING:
    from pipeline.jobs import Cluster, JobInfo

PATIENCE_S = 150.0
"""Longer than Ray takes until it kills: see pipeline/submitting.py."""

TEXT = """\
Stop the job of a stage, in order.

The stage gets the signal of Ctrl-C and ends by itself, a training after a last checkpoint. The
same `submit` or `run` goes on from there.
"""
EPILOG = """\
line    stops the job that runs all stages, and then the stages that it has started

examples:
  python -m pipeline stop train-base CONFIG --address http://127.0.0.1:8265
  python -m pipeline stop line CONFIG
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    arguments.add_stage(parser, "line: all of it")


def run(args: argparse.Namespace) -> int:
    """Stop what the command line names, and wait for its end; return the exit status."""
    from pipeline import config as configs
    from pipeline import jobs, stages
    from pipeline.commands.naming import jobs_named

    cluster = arguments.cluster(args)
    config = configs.load(args.config, args.overrides)
    named = jobs_named(args, cluster)
    first = {name: found[-1] for name, found in named.items() if found[-1].active}
    stopped = _stop(cluster, first)
    if args.stage == jobs.LINE:
        later = {name: found[-1] for name, found in cluster.of(config.out).items()}
        stopped |= _stop(cluster, {name: job for name, job in later.items() if job.active})
    if not stopped:
        cli.say(f"{args.stage}: no job of it is running")
    states = {stage.name: stage.state for stage in stages.line(config)}
    for name, status in stopped.items():
        state = states[name]() if name in states else None
        print(f"{name}: {status}" + (f"; {state.status}, {state.detail}" if state else ""))
    return 0


def _stop(cluster: "Cluster", running: Mapping[str, "JobInfo"]) -> dict[str, str]:
    """Stop jobs and wait for their ends; return their last states by stage."""
    from pipeline.jobs import Unreachable

    for name, job in running.items():
        cli.say(f"{name}: stopping job {job.id}, which may take until a checkpoint is saved")
        cluster.stop(job.id)
    ended: dict[str, str] = {}
    deadline = time.monotonic() + PATIENCE_S
    while left := running.keys() - ended.keys():
        for name in left:
            job = cluster.info(running[name].id)
            if job is None or not job.active:
                ended[name] = job.status if job else "gone with its cluster"
        if time.monotonic() > deadline:
            raise Unreachable(f"{', '.join(left)} did not end within {PATIENCE_S:.0f} s")
        time.sleep(0.5)
    return ended
