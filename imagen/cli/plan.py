"""`imagen plan base64 --card 24`: what training and sampling a member need, before either."""

import argparse
from typing import Any

from imagen.cli.arguments import subcommand
from imagen.errors import ConfigError

OPTIONS = (
    "microbatch", "precision", "optimizer", "checkpoint_levels", "tokens", "card", "yaml",
)  # fmt: skip

EPILOG = """\
examples
  imagen plan                                   presets, cascades and their sizes
  imagen plan base64-m                          memory at microbatches 1, 4, 16 and 64
  imagen plan base64 sr256 --card 80            the largest microbatch of each way to train
  imagen plan imagen-s --microbatch 8 --precision bf16
  imagen plan pipeline/configs/digits.yaml      the members of a config, trained as it says
  imagen plan imagen-s --yaml                   a `members:` section to paste into a config

Estimates are for GPUs; they come from running the real step on tensors without values. Not in them:
workspaces of convolutions, the driver's context (--card keeps a tenth and half a GB for these), the
text encoder. Train one member at a time: `python -m train` does, and a card needs what the largest
member needs. (MinImagen trains its two default U-Nets together: 37 GB for weights, gradients and
Adam's state alone, at any batch size.) Training has AdamW; what Adafactor would need is shown for
comparison: the paper trained its base member with it.
"""


def add(commands: Any) -> None:
    """Add `imagen plan` to the subcommands."""
    command = subcommand(commands, "plan", "tell what presets and configs need", EPILOG, run)
    option = command.add_argument
    option("names", metavar="PRESET|CASCADE|CONFIG.yaml", nargs="*", help="none: list the presets")
    option("--microbatch", type=int, metavar="N", help="images of one pass (default: a table)")
    option("--precision", choices=("fp32", "bf16"), help="of training (default fp32)")
    option("--optimizer", choices=("adamw", "adafactor"), help="of training (default adamw)")
    option(
        "--checkpoint-levels", metavar="all|0,1,…", help="levels to compute again (default none)"
    )
    option("--tokens", type=int, metavar="N", help="text tokens of an image (default 128)")
    option("--card", type=float, metavar="GB", help="suggest what fits, for example 12, 24, 80")
    option("--yaml", action="store_true", help="print the `members:` section of a config")


def run(args: argparse.Namespace) -> None:
    """Print the plan that the command line asks for. Raises ConfigError."""
    _check(args)
    from imagen.cli import plan_tables  # imports torch
    from imagen.cli.plan_subjects import members_yaml, subjects

    if not args.names:
        plan_tables.print_presets()
        return
    chosen = subjects(args)
    if args.yaml:
        print(members_yaml(chosen), end="")
        return
    plan_tables.print_plan(chosen, args.microbatch, args.card)


def _check(args: argparse.Namespace) -> None:
    for key in ("microbatch", "tokens"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} {value} is less than 1")
    asked = [key for key in OPTIONS if getattr(args, key)]
    if asked and not args.names:
        raise ConfigError(
            f"--{asked[0].replace('_', '-')} is of no use without a preset, cascade or config",
            "`imagen plan` alone lists the presets",
        )
