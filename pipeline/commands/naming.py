"""Which jobs the words STAGE and CONFIG of a command line name."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.jobs import Cluster, JobInfo


def jobs_named(args: argparse.Namespace, cluster: "Cluster") -> dict[str, list["JobInfo"]]:
    """Return the jobs of the stages that a command line names, those that have any."""
    from pipeline import config as configs
    from pipeline import jobs, stages

    config = configs.load(args.config, args.overrides)
    known = cluster.of(config.out)
    if args.stage == jobs.LINE:
        return {name: found for name, found in known.items() if name == jobs.LINE}
    chosen = [stage.name for stage in stages.select(stages.line(config), only=args.stage)]
    return {name: known[name] for name in chosen if name in known}
