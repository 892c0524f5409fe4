"""`python -m preencode CONFIG`: index the tar shards and encode their captions."""

import argparse

from imagen.config import dump_yaml, load_config
from preencode.config import PreencodeConfig
from runtime.cli import stage_parser

TEXT = """\
Index the tar shards of a data set and encode their captions with a frozen T5.

For each tar, a Ray actor reads it once, notes where every image and caption is (<out>/index/),
and stores the embedding of every distinct caption (<out>/embeddings/<encoder>/), real tokens only,
as arrays that numpy maps into memory. What is finished is never done again; run the same command
after any kind of stop and it continues. The result is the same to the byte.
"""

MORE = """\
examples:
  python -m preencode import digits pipeline/configs/digits.yaml   bring the images in, first
  python -m preencode pipeline/configs/digits.yaml                 index and encode
  python -m preencode CONFIG --dry-run                             what is left, in bytes too
  python -m preencode CONFIG --dry-run --measure                   and in hours
  python -m preencode CONFIG data.tars=gs://bucket/tars            use tars where they are;
                                                                   nothing to import then
  python -m preencode CONFIG text.encoder=google/flan-t5-xl preencode.gpus_per_actor=1

A tar holds KEY.jpg (or .png, .webp) and KEY.txt for each sample; img2dataset's output is one.
Samples that cannot be used are left out, counted by reason, and listed in
<out>/index/SHARD.quarantine.jsonl. A damaged tar fails alone: the others are finished, the
damaged one is reported, and the exit status is 1. A disk or a bucket that fails is tried three
times.

see also: python -m preencode import --help     bring images and captions in
          python -m preencode prepare --help    images at the members' sizes, for faster training
          python -m preencode verify --help     check everything that was written
          python -m preencode inspect --help    look at embeddings, or at those of one sample

exit status: 0 all done; 1 some shards failed; 2 something in config or input is wrong
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = stage_parser("python -m preencode", TEXT, MORE)
    parser.add_argument(
        "--measure", action="store_true", help="with --dry-run: try the encoder here for its speed"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Index and encode; return the exit status."""
    from preencode import driver, estimate, report

    config = load_config(PreencodeConfig, args.config, args.overrides)
    if args.dry_run:
        print(dump_yaml(config))
        for line in estimate.plan_lines(config, measure=args.measure):
            print(line)
        return 0
    result = driver.run(config, args.address)
    print(*report.summary_lines(result), sep="\n")
    return 1 if result.failed else 0
