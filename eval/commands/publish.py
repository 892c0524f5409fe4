"""`python -m eval publish CONFIG DEST`: an evaluated cascade with its card, for others."""

import argparse

TEXT = """\
Publish an evaluated cascade: choose it, check that it is the one that was evaluated, and copy its
members to DEST with a model card, metrics, a grid of samples and checksums. The manifest is last.
"""
EPILOG = """\
what it checks  every member file by its checksum, before and after it is copied; that the cascade
                loads, and draws the first image of the evaluation again (within 2 of 255 levels)
run again       checks everything and writes nothing; another cascade at DEST is refused
use it          imagen sample "seven" --cascade DEST --out seven.png, on any machine

examples
  python -m eval publish pipeline/configs/digits.yaml gs://my-bucket/digits --license apache-2.0
  python -m eval publish CONFIG published --evaluation best --by distribution.inception.fd
  python -m eval publish CONFIG published --evaluation 000000038400-1a2b3c4d
  python -m eval publish CONFIG hub --layout hub --license cc-by-4.0    # then: hf upload NAME hub
"""
UNSTATED = "not stated"


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m eval publish",
        description=TEXT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file; a path or any fsspec URL")
    parser.add_argument("dest", metavar="DEST", help="folder to publish to: a path or URL")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="set a key of the config")
    parser.add_argument(
        "--evaluation", default="newest", metavar="WHICH", help="newest (default), best, or a name"
    )
    parser.add_argument("--by", metavar="FIGURE", help="figure that says which is best")
    parser.add_argument(
        "--layout", choices=("imagen", "hub"), default="imagen",
        help="hub: the card has the fields that the Hugging Face hub reads",
    )  # fmt: skip
    parser.add_argument("--license", default=UNSTATED, help="licence of the weights")
    parser.add_argument("--data-license", default=UNSTATED, help="licence of the images")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DEST")
    parser.add_argument("--dry-run", action="store_true", help="check, but write nothing")
    return parser


def run(args: argparse.Namespace) -> None:
    """Publish as the command line says."""
    from eval import card, history, publish  # behind them is torch: `--help` needs none
    from eval.config import EvalConfig
    from imagen.config import load_config
    from imagen.project import absolute

    found = history.load(absolute(load_config(EvalConfig, args.config, args.overrides)))
    evaluation = publish.choose(found, args.evaluation, args.by)
    chosen = publish.prepare(found, evaluation)
    publish.refuse(args.dest, chosen, args.overwrite)
    apart = publish.verify(chosen)
    print(f"evaluation  {evaluation.name}")
    for name, folder in chosen.snapshots.items():
        print(f"{name:10}  {folder}, {evaluation.images_seen[name]:,} images")
    print(f"verified    loads, and draws as it was evaluated (within {apart} of 255 levels)")
    if args.dry_run:
        return
    about = card.About(
        weights_license=args.license, data_license=args.data_license, layout=args.layout
    )
    written = publish.publish(args.dest, chosen, about)
    print(f"written     {', '.join(written) or 'nothing: all of it was there'}")
    print(args.dest)
