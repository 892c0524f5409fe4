"""The `imagen` command, one file a subcommand. torch is imported only when something is drawn."""

from imagen.cli.command import main, parser

__all__ = ["main", "parser"]
