"""The command line that all stage programs share: arguments, errors without tracebacks, exits."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from imagen.errors import ImagenError

PARENT = "IMAGEN_PARENT_PID"
"""Environment variable by which the pipeline asks a stage to end when the pipeline is gone."""


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def stage_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a stage: CONFIG, `a.b=c` overrides, --dry-run, --address."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    add_run_options(parser)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and its overrides to a command line."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file; a path or any fsspec URL")
    parser.add_argument(
        "overrides", metavar="a.b=c", nargs="*", help="set a key of the config, e.g. seed=7"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that works has: --dry-run and --address."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done and stop; changes nothing"
    )
    parser.add_argument(
        "--address",
        help="address of a running Ray cluster; default: $RAY_ADDRESS, else a local Ray is started",
    )


def main(
    run: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser
) -> NoReturn:
    """Parse the command line, call `run` with it and exit with what it returns (None is 0).

    A user's error is printed without a traceback and exits with 2, an interrupt with 130.
    """
    _end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # a shell's `command &` starts it ignored
    args = _parse(parser)
    try:
        code = run(args)
        sys.stdout.flush()  # here, so that a closed pipe is caught below
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `… | head` had enough
        sys.exit(0)
    except Exception as err:
        cause = user_error(err)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code)


def _parse(
    parser: argparse.ArgumentParser, words: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse with overrides also behind options, which argparse's `*` alone does not take."""
    args, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def user_error(err: BaseException) -> ImagenError | None:
    """Return the ImagenError behind an exception, also one that crossed Ray, or None."""
    found = [cause for cause in _causes(err) if isinstance(cause, ImagenError)]
    # Ray's copy of an error is an ImagenError too, with a traceback as text; the cause is last
    return found[-1] if found else None


def _causes(err: BaseException, depth: int = 0) -> Iterator[BaseException]:
    yield err
    if depth == 8:
        return  # a cycle of causes
    behind = [getattr(err, "cause", None), err.__cause__]
    behind.extend(getattr(err, "worker_failures", {}).values())  # Ray Train's worker group error
    for cause in behind:
        if isinstance(cause, BaseException):
            yield from _causes(cause, depth + 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Kill this process when the one named in `PARENT` is gone: kill -9 leaves no orphans."""
    expected = os.environ.pop(PARENT, None)
    if expected is None:
        return

    def watch() -> None:
        while os.getppid() == int(expected):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)  # the stages survive that by contract

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
