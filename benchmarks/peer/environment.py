"""The peer's own virtual environment: made once by pip, kept under `.bench`, never committed."""

import subprocess
import sys
import venv
from pathlib import Path

import torch

FOLDER = Path(__file__).parents[2] / ".bench"
PEER = "imagen-pytorch==2.1.0"


class NoPeer(Exception):
    """The peer's environment cannot be made."""


def python() -> Path:
    """Return the interpreter of the peer's environment, which is made where it is missing.

    It has the torch version that runs here, so that the comparison is of networks.

    Raises: `NoPeer` where pip fails, most often for want of a network.
    """
    wanted = [PEER, f"torch=={torch.__version__.split('+')[0]}"]
    home = FOLDER / "peer"
    interpreter = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    complete = home / "installed.txt"
    if complete.is_file() and complete.read_text().split() == wanted:
        return interpreter
    print(f"installing {' '.join(wanted)} into {home}: about 2 minutes, once", file=sys.stderr)
    venv.create(home, with_pip=True, clear=True)
    (FOLDER / ".gitignore").write_text("*\n")
    done = subprocess.run(
        [interpreter, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise NoPeer(
            f"cannot install {PEER}: {last}\n"
            "hint: the first run needs a package index; later runs reuse "
            f"{home} without a network. `--alone` measures ours only."
        )
    complete.write_text("\n".join(wanted))
    return interpreter
