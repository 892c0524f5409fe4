"""`python -m preencode import SOURCE CONFIG`: bring a source in as tar shards."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from imagen import storage
from imagen.config import build, dump_yaml, read_tree
from imagen.errors import ConfigError
from imagen.project import absolute
from preencode.config import PreencodeConfig
from preencode.sources.config import SourceConfig, shortest
from runtime.cli import add_config, add_run_options

if TYPE_CHECKING:
    from preencode.importing import Imported, Plan

TEXT = """\
Bring a source in as WebDataset tar shards, <out>/data/00000.tar and on, with captions.

SOURCE is `digits`, `shapes`, `folder`, `hub` or `urls`; or a path: a folder of images, or a list
of URLs (.parquet, .csv, .tsv, .jsonl). The details are keys of the config's section `source`.

  digits  1,797 real handwritten digits that come with scikit-learn, upsampled once to 32x32
  shapes  generated scenes of one to four coloured shapes with compositional captions
  folder  images below a folder or bucket, at any depth; the caption is in KEY.txt beside KEY.jpg,
          or in metadata.jsonl, .csv or .parquet with the columns file_name and caption (or text)
  hub     a dataset of the Hugging Face hub, or a copy of one in a local folder, as a stream
  urls    a list with the columns url and caption (or text), fetched by this machine alone

The same seed and source give the same bytes. An import that was stopped goes on with the first
shard that it had not finished; a second run finds that all is there and does nothing; a source or
settings that changed are imported anew.
"""

MORE = """\
examples:
  python -m preencode import digits pipeline/configs/digits.yaml
  python -m preencode import digits CONFIG source.shards=4 out=runs/four
  python -m preencode import shapes CONFIG source.samples=50000 source.size=64
  python -m preencode import folder CONFIG source.path=./photos
  python -m preencode import ./photos CONFIG                        the same
  python -m preencode import folder CONFIG source.path=gs://bucket/photos
  python -m preencode import hub CONFIG source.path=owner/name source.split=train
  python -m preencode import hub CONFIG source.path=./downloaded source.caption_column=description
  python -m preencode import urls CONFIG source.path=list.parquet source.threads=32
  python -m preencode import list.csv CONFIG --dry-run              what would be written

In the config, which the other commands read, too:
  source: {name: digits, shards: 8}
  source: {name: folder, path: ./photos}

JPEG, PNG and WebP keep their bytes; of other formats the first frame is stored as PNG. Rows that
cannot be used are left out, counted by reason and listed in <out>/data/failures.jsonl. Rows are
dealt to shards in an order that the seed decides (hub: in the order of the stream), at most
source.shard_samples and source.shard_bytes a shard.

urls: addresses of private networks are refused (source.allow_private=true allows them), so is what
is larger than source.largest_bytes or opted out (X-Robots-Tag: noai). A URL that failed is tried
again only if its shard was not finished. For hundreds of millions of URLs use img2dataset, in an
environment of its own, and give its output folder as data.tars: there is nothing to import then.

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
    parser.add_argument(
        "source", metavar="SOURCE", help="digits, shapes, folder, hub, urls, or a path"
    )
    add_config(parser)
    add_run_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Import a source; return the exit status."""
    from preencode import importing
    from preencode.sources.opening import overrides_of
    from runtime import state

    given = overrides_of(args.source)
    told = read_tree(args.config, args.overrides)
    tree = read_tree(args.config, [*args.overrides, *given])
    _check_kind(told.get("source"), tree["source"])
    config = absolute(build(PreencodeConfig, tree, args.config))
    importing.check(config)  # before the lock makes a folder, and the sweep deletes in it
    if args.dry_run:
        print(dump_yaml(config))
        print(*plan_lines(importing.plan(config), config), sep="\n")
        return 0
    with state.lock(config.tars):
        storage.sweep_temporary(
            config.tars, older_than_s=0
        )  # while it is ours, nobody writes there
        done = importing.run(config)
    print(*summary_lines(done), sep="\n")
    if tree["source"] != told.get("source") and config.source is not None:
        print(*_config_lines(args.config, config.source), sep="\n")
    return 0


def _check_kind(told: Any, wanted: dict[str, Any]) -> None:
    """Raise ConfigError when the config speaks of another kind of source than the command."""
    if isinstance(told, dict) and told.get("name") not in (None, wanted["name"]):
        keys = ", ".join(f"{key}: {wanted[key]}" for key in ("name", "path") if key in wanted)
        raise ConfigError(
            f"the config's `source` is {told['name']!r}, the command says {wanted['name']!r}",
            f"replace that section, or add 'source={{{keys}}}' to this and the later commands",
        )


def plan_lines(plan: "Plan", config: PreencodeConfig) -> Iterator[str]:
    """Describe what an import would do."""
    from preencode import report

    rows = "as many rows as it has" if plan.rows is None else f"{plan.rows:,} rows"
    size = "" if plan.size_bytes is None else f", {report.human_bytes(plan.size_bytes)} of images"
    yield f"source          {plan.title}: {rows}{size}"
    if plan.shards is None:
        yield f"to write        tar shards until the source ends, in {config.tars}"
        return
    if plan.finished:
        yield f"there already   {plan.finished} of {plan.shards} tar shards"
    yield f"to write        {plan.shards - plan.finished} tar shards in {config.tars}"


def summary_lines(done: "Imported") -> Iterator[str]:
    """Describe what an import brought, and what it left out."""
    from preencode import report
    from preencode.importing import FAILURES

    yield (
        f"{'imported' if done.fresh else 'already there:'} {done.samples:,} samples in "
        f"{done.shards} tar shards, {report.human_bytes(done.size_bytes)}, {done.folder}"
    )
    for reason, count in done.left_out.items():
        yield f"left out        {count:,} {reason} (see {FAILURES} there)"
    for suffix, count in done.ignored.items():
        yield f"no images       {count:,} files: {suffix}"


def _config_lines(path: str, source: SourceConfig) -> Iterator[str]:
    """Say what the config lacks: the other commands find this import by its section `source`."""
    yield f"the other commands find this import by the config; add to {path}, in place of `source`:"
    yield dump_yaml({"source": shortest(source)}).rstrip()
