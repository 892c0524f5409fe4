"""`python -m preencode verify CONFIG`: check everything that indexing and encoding wrote."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from imagen.config import load_config
from imagen.data.tars import Tar
from imagen.errors import ConfigError, ImagenError
from imagen.project import absolute
from preencode import importing, room, verify
from preencode.commands.histogram import histogram_lines
from preencode.config import PreencodeConfig
from preencode.dispatch import dispatch
from preencode.driver import ENCODER, make_job, passing, starter
from preencode.report import human_bytes
from preencode.shard import Job
from preencode.verify import Findings
from runtime import progress, session
from runtime.cli import stage_parser

TEXT = """\
Check what `python -m preencode CONFIG` wrote, changing nothing.

Every file of the index and of the embeddings is read and its checksum compared, and so are the
images in the tars; the captions of every tar are read and tokenized again, and each sample's
tokens compared with those that it is joined with; some captions of each shard are encoded again,
each alone, and compared with what is stored.
"""

MORE = """\
examples:
  python -m preencode verify pipeline/configs/digits.yaml
  python -m preencode verify CONFIG --captions 100     encode more captions of each shard again

exit status: 0 all is as it should be; 1 something is not (each problem is named, with its shard);
2 something in config or input is wrong
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = stage_parser("python -m preencode verify", TEXT, MORE)
    parser.add_argument(
        "--captions", type=int, default=16, help="captions of each shard to encode again (16)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Verify; return the exit status."""
    if args.captions < 0:
        raise ConfigError(f"--captions {args.captions} is negative", "0 encodes none again")
    config = absolute(load_config(PreencodeConfig, args.config, args.overrides))
    tars = importing.list_tars(config)
    job = make_job(config)
    if args.dry_run:
        print(f"to verify       {len(tars):,} shards, {args.captions} captions of each again")
        return 0
    found = Findings("all")
    found.problems += verify.check_sets(job, tars)
    with session.connect(args.address):
        _work(config, job, tars, args.captions, found)
    print(*summary_lines(found, len(tars), job.text.dtype), sep="\n")
    return 1 if found.problems else 0


def _work(
    config: PreencodeConfig, job: Job, tars: Sequence[Tar], captions: int, found: Findings
) -> None:
    """Have all shards checked by actors, and add up what they find."""

    def call(actor: Any, item: Tar | str, _: Tar | str | None) -> Any:
        if isinstance(item, Tar):
            return actor.verify.remote(item, captions)
        return actor.verify_encoder.remote()

    outcomes = dispatch(
        [ENCODER, *tars], starter(config, job), call, room.Room(config.preencode), passing
    )
    with progress.bar("verify", len(tars), "shards") as bar, closing(outcomes):
        for outcome in outcomes:
            if outcome.lost is not None or outcome.failed is not None:
                continue
            value = outcome.error or outcome.value[1]
            if isinstance(value, ConfigError):
                raise value
            name = outcome.item.name if isinstance(outcome.item, Tar) else ENCODER
            if isinstance(value, ImagenError):
                value = Findings(name, [value.message])
            elif not isinstance(value, Findings):
                value = Findings(name, value)
            found.add(value)
            bar.advance(outcome.item != ENCODER)


def summary_lines(found: Findings, shards: int, dtype: str) -> Iterator[str]:
    """Describe what was checked and what is wrong."""
    yield (
        f"verified        {shards:,} shards, {human_bytes(found.bytes_read)} by checksum, "
        f"{found.rows:,} samples joined with their captions"
    )
    yield (
        f"encoded again   {found.compared:,} captions, largest relative error {found.worst:.1e} "
        f"(allowed {verify.TOLERANCE[dtype]:.0e})"
    )
    yield from histogram_lines(found.lengths)
    for problem in sorted(found.problems):
        yield f"PROBLEM {problem}"
    yield f"{len(found.problems)} problems" if found.problems else "all is as it should be"
