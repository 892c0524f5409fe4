"""Command line: `python -m preencode import SOURCE CONFIG` and `python -m preencode CONFIG`."""

import argparse
import sys

from imagen.config import dump_yaml, load_config
from imagen.errors import ConfigError
from imagen.project import absolute
from preencode.config import PreencodeConfig
from runtime.cli import main, stage_parser

SOURCES = ("digits",)

ENCODE_TEXT = """\
Index the tar shards of a data set and encode their captions with a frozen T5.

For each tar, a Ray actor reads it once, notes where every image and caption is (<out>/index/),
and stores the embedding of every distinct caption (<out>/embeddings/<encoder>/), real tokens only,
as arrays that numpy maps into memory. What is finished is never done again; run the same command
after any kind of stop and it continues. The result is the same to the byte.
"""

ENCODE_MORE = """\
examples:
  python -m preencode import digits pipeline/configs/digits.yaml   bring the images in, first
  python -m preencode pipeline/configs/digits.yaml                 index and encode
  python -m preencode CONFIG --dry-run                             what is left, in bytes too
  python -m preencode CONFIG data.tars=gs://bucket/tars            use tars where they are;
                                                                   nothing to import then
  python -m preencode CONFIG text.encoder=google/flan-t5-xl preencode.gpus_per_actor=1

A tar holds KEY.jpg (or .png, .webp) and KEY.txt for each sample; img2dataset's output is one.
Samples that cannot be used are left out, counted by reason, and listed in
<out>/index/SHARD.quarantine.jsonl. A damaged tar fails alone: the others are finished, the
damaged one is reported, and the exit status is 1.

exit status: 0 all done; 1 some shards failed; 2 something in config or input is wrong
"""

IMPORT_TEXT = """\
Bring a source in as WebDataset tar shards, <out>/data/00000.tar and on, with captions.

SOURCE is `digits`: 1,797 real handwritten digits that come with scikit-learn, upsampled once to
32x32, captioned in several phrasings. The same seed gives the same bytes; a second run finds that
all is there and does nothing.
"""

IMPORT_MORE = """\
examples:
  python -m preencode import digits pipeline/configs/digits.yaml
  python -m preencode import digits CONFIG source.shards=4 out=runs/four

The config needs a section `source: {name: digits, shards: 8}`.
Next: python -m preencode CONFIG
"""


def run_encode(args: argparse.Namespace) -> int:
    """Index and encode; return the exit status."""
    from preencode import driver, report

    config = load_config(PreencodeConfig, args.config, args.overrides)
    if args.dry_run:
        print(dump_yaml(config))
        print(*report.plan_lines(config), sep="\n")
        return 0
    result = driver.run(config, args.address)
    print(*report.summary_lines(result), sep="\n")
    return 1 if result.failed else 0


def run_import(args: argparse.Namespace) -> int:
    """Import a source; return the exit status."""
    from preencode import importing, report
    from runtime import state

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


def _import_main(words: list[str]) -> None:
    source = words[0] if words and not words[0].startswith("-") else None
    prog = f"python -m preencode import {source or 'SOURCE'}"
    parser = stage_parser(prog, IMPORT_TEXT, IMPORT_MORE)
    if source is not None and source not in SOURCES:
        parser.error(f"unknown source `{source}`; known: {', '.join(SOURCES)}")
    parser.set_defaults(source=source)
    sys.argv[1:] = words[1:] if source else ["--help"]
    main(run_import, parser)


if __name__ == "__main__":
    if sys.argv[1:2] == ["import"]:
        _import_main(sys.argv[2:])
    main(run_encode, stage_parser("python -m preencode", ENCODE_TEXT, ENCODE_MORE))
