"""`python -m eval publish CONFIG [DEST]`: an evaluated cascade with its card, for others."""

import argparse
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.config import EvalConfig, PublishConfig
    from eval.history import History
    from eval.publish import Chosen

TEXT = """\
Publish an evaluated cascade: choose it, check that it is the one that was evaluated, and copy its
members to DEST with a model card, metrics, a grid of samples and checksums. The manifest is last.
What is not said here, the section `publish` of the config says; DEST is else <out>/published.
"""
EPILOG = """\
what it checks  every member file by its checksum, before and after it is copied; that the cascade
                loads, and draws the first image of the evaluation again (within 2 of 255 levels)
run again       checks everything and writes nothing. Another cascade at DEST is refused; without a
                DEST, one that this run has evaluated gives way, unless the newest is asked for and
                has seen fewer images
use it          imagen sample "seven" --cascade DEST --out seven.png, on any machine

examples
  python -m eval publish pipeline/configs/digits.yaml
  python -m eval publish pipeline/configs/digits.yaml gs://my-bucket/digits --license apache-2.0
  python -m eval publish CONFIG published --evaluation best --by distribution.inception.fd
  python -m eval publish CONFIG published --evaluation 000000038400-1a2b3c4d
  python -m eval publish CONFIG hub --layout hub --license cc-by-4.0    # then: hf upload NAME hub
"""
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
"""How a setting of the config begins: a DEST that looks like one is written `./a=b`."""


class Parser(argparse.ArgumentParser):
    """Takes DEST behind options, too: argparse by itself decides that there is none before them."""

    _mixing = False

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - overloads
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Parse options first, then what is left as CONFIG, DEST and settings."""
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = Parser(
        prog="python -m eval publish",
        description=TEXT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file; a path or any fsspec URL")
    parser.add_argument(
        "dest", metavar="DEST", nargs="?", help="folder to publish to: a path or URL"
    )
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="set a key of the config")
    parser.add_argument("--evaluation", metavar="WHICH", help="newest, best, or a name")
    parser.add_argument("--by", metavar="FIGURE", help="figure that says which is best")
    parser.add_argument(
        "--layout", choices=("imagen", "hub"),
        help="hub: the card has the fields that the Hugging Face hub reads",
    )  # fmt: skip
    parser.add_argument("--license", help="licence of the weights")
    parser.add_argument("--data-license", help="licence of the images")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DEST")
    parser.add_argument("--dry-run", action="store_true", help="check, but write nothing")
    return parser


def run(args: argparse.Namespace) -> None:
    """Publish as the command line and the config say."""
    from eval import history, publish, published  # behind them is torch: `--help` needs none
    from imagen.project import absolute

    _sort_words(args)
    config = absolute(_load(args))
    section = _section(config, args)
    found = history.load(config)
    evaluation = publish.choose(found, section.evaluation, section.by or None)
    chosen = publish.prepare(found, evaluation)
    _refuse(found, chosen, args, section.evaluation)
    apart = publish.verify(chosen)
    print(f"evaluation  {evaluation.name}")
    for name, folder in chosen.snapshots.items():
        print(f"{name:10}  {folder}, {evaluation.images_seen[name]:,} images")
    print(f"verified    loads, and draws as it was evaluated (within {apart} of 255 levels)")
    dest = args.dest or config.published
    if args.dry_run:
        return
    written = publish.publish(dest, chosen, published.about(section))
    print(f"written     {', '.join(written) or 'nothing: all of it was there'}")
    print(dest)


def _sort_words(args: argparse.Namespace) -> None:
    """Take a setting that stands where DEST may for a setting."""
    if args.dest is not None and OVERRIDE.match(args.dest):
        args.overrides = [args.dest, *args.overrides]
        args.dest = None


def _load(args: argparse.Namespace) -> "EvalConfig":
    from eval.config import EvalConfig
    from imagen.config import load_config

    return load_config(EvalConfig, args.config, args.overrides)


def _section(config: "EvalConfig", args: argparse.Namespace) -> "PublishConfig":
    """Return the `publish` section with what the command line says on top. Raises ConfigError."""
    from eval.config import PublishConfig
    from imagen.config import build, to_tree

    tree = to_tree(config.publish or PublishConfig())
    given = {
        "evaluation": args.evaluation,
        "by": args.by,
        "layout": args.layout,
        "weights_license": args.license,
        "data_license": args.data_license,
    }
    if args.evaluation not in (None, "best"):
        tree["by"] = ""  # was said of the best one, which is not asked for
    tree |= {key: value for key, value in given.items() if value is not None}
    return build(PublishConfig, tree, "the command line")


def _refuse(found: "History", chosen: "Chosen", args: argparse.Namespace, which: str) -> None:
    from eval import publish, published

    if args.dest is None and not args.overwrite:
        published.refuse_others(found, chosen, which)
    else:
        publish.refuse(args.dest or found.config.published, chosen, args.overwrite)
