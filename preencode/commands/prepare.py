"""`python -m preencode prepare CONFIG`: bring the images to the size of each member, once."""

import argparse

from imagen.config import dump_yaml, load_config
from preencode.config import PreencodeConfig
from runtime.cli import stage_parser

TEXT = """\
Bring the images of a data set to the size of each member, so that training decodes small ones.

For each tar, a Ray actor reads it once and writes one tar a member, <out>/prepared/<member>/data/,
with the same samples in the same order, and its index. The pixels are those that training would
make of the source. Needs data.prepare=true in the config, and what `python -m preencode CONFIG`
makes. What is finished is never done again; run the same command after any kind of stop and it
continues. The result is the same to the byte.
"""

MORE = """\
examples:
  python -m preencode prepare CONFIG data.prepare=true
  python -m preencode prepare CONFIG data.prepare=true --dry-run   what is left, in bytes too

Images that are smaller than a member, or cannot be decoded, stay as they are; they are counted by
reason, and training gives them no weight. So do images whose new file would be no smaller.
Members have tars of their own: when one changes its size, only its tars are made again.

exit status: 0 all done; 1 some shards failed; 2 something in config or input is wrong
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    return stage_parser("python -m preencode prepare", TEXT, MORE)


def run(args: argparse.Namespace) -> int:
    """Prepare images; return the exit status."""
    from preencode import prepare, prepare_report

    config = load_config(PreencodeConfig, args.config, args.overrides)
    if args.dry_run:
        print(dump_yaml(config))
        print(*prepare_report.plan_lines(config), sep="\n")
        return 0
    result = prepare.run(config, args.address)
    print(*prepare_report.summary_lines(result), sep="\n")
    return 1 if result.failed else 0
