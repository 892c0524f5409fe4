"""`python -m preencode import SOURCE CONFIG`: bring a source in as tar shards."""

import argparse

from imagen.config import dump_yaml, load_config
from imagen.errors import ConfigError
from imagen.project import absolute
from preencode.config import PreencodeConfig
from runtime.cli import add_config, add_run_options

SOURCES = ("digits",)

TEXT = """\
Bring a source in as WebDataset tar shards, <out>/data/00000.tar and on, with captions.

SOURCE is `digits`: 1,797 real handwritten digits that come with scikit-learn, upsampled once to
32x32, captioned in several phrasings. The same seed gives the same bytes; a second run finds that
all is there and does nothing.
"""

MORE = """\
examples:
  python -m preencode import digits pipeline/configs/digits.yaml
  python -m preencode import digits CONFIG source.shards=4 out=runs/four

The config needs a section `source: {name: digits, shards: 8}`.
Next: python -m preencode CONFIG
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m preencode import",
        description=TEXT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help=", ".join(SOURCES))
    add_config(parser)
    add_run_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Import a source; return the exit status."""
    from preencode import importing, report
    from runtime import state

    if args.source not in SOURCES:
        raise ConfigError(f"unknown source `{args.source}`; known: {', '.join(SOURCES)}")
    config = load_config(PreencodeConfig, args.config, args.overrides)
    source = config.source
    if source is None or source.name != args.source:
        raise ConfigError(
            f"the config's `source` is {source and source.name!r}, "
            f"the command says {args.source!r}",
            f"add `source: {{name: {args.source}, shards: 8}}` to the config",
        )
    config = absolute(config)
    if args.dry_run:
        print(dump_yaml(config))
        there = importing.done(config) is not None
        shards = 0 if there else source.shards
        print(f"to write        {shards} tar shards in {config.tars}")
        return 0
    with state.lock(config.tars):
        done = importing.run(config)
    print(
        f"{'imported' if done.fresh else 'already there:'} {done.samples:,} samples in "
        f"{done.shards} tar shards, {report.human_bytes(done.size_bytes)}, {done.folder}"
    )
    return 0
