"""What the commands that talk to a cluster share of their command lines."""

import argparse
import shlex
from typing import TYPE_CHECKING

from imagen.errors import ConfigError
from runtime import cli

if TYPE_CHECKING:
    from pipeline.jobs import Cluster
    from pipeline.submitting import Shipment

ADDRESS = "URL of the cluster's dashboard, http://HEAD:8265; default: $RAY_API_SERVER_ADDRESS"


def add_stage(parser: argparse.ArgumentParser, every: str) -> None:
    """Add STAGE, CONFIG and the cluster. `every`: what the stage `line` stands for."""
    told = f"a name that `status` shows, with dashes (train-base); train: all trainings; {every}"
    parser.add_argument("stage", metavar="STAGE", help=told)
    cli.add_config(parser)
    parser.add_argument("--address", help=ADDRESS)


def add_shipping(parser: argparse.ArgumentParser) -> None:
    """Add what a job is given beside the config."""
    add_code(parser)
    parser.add_argument(
        "--options", default="", metavar="TEXT", help="of the stage itself, as --options=--all"
    )


def add_code(parser: argparse.ArgumentParser) -> None:
    """Add where the code of jobs comes from."""
    parser.add_argument(
        "--code", choices=("checkout", "image"), default="checkout",
        help="ship this checkout with each job (default), or use what the cluster's image has",
    )  # fmt: skip


def url(args: argparse.Namespace) -> str | None:
    """Return the URL of the cluster of a command line or the environment, None when there is none.

    Raises ConfigError for what is no URL.
    """
    from pipeline import addresses

    found = addresses.url_of(args.address)
    if found is not None:
        addresses.host_and_port(found)
    elif args.address:
        raise ConfigError(
            f"--address `{args.address}` is no URL, but jobs are asked for over HTTP",
            "add --address http://HEAD:8265",
        )
    return found


def some_url(args: argparse.Namespace) -> str:
    """Return the URL of the cluster that a command line names. Raises ConfigError."""
    from pipeline import addresses

    found = url(args)
    if found is None:
        raise ConfigError(
            "no cluster is named, but jobs are submitted over HTTP",
            f"add --address http://HEAD:8265, or set {addresses.URL}",
        )
    return found


def cluster(args: argparse.Namespace) -> "Cluster":
    """Return the cluster that a command line names. Raises ConfigError."""
    from pipeline import jobs

    return jobs.Cluster(some_url(args))


def shipment(args: argparse.Namespace) -> "Shipment":
    """Return what jobs of a command line's config are given. Raises ConfigError."""
    from pipeline import config as configs
    from pipeline import submitting

    return submitting.ship(
        configs.load(args.config, args.overrides), getattr(args, "code", "checkout")
    )


def options(args: argparse.Namespace) -> list[str]:
    """Return the stage's own options of a command line."""
    return shlex.split(args.options)
