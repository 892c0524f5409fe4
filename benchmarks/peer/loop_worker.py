"""One system's training loop in a process of its own: JSON requests in, JSON replies out.

    python loop_worker.py ours|theirs

`start` builds, up to the first step; `step` lets it take one; `save` has it save a checkpoint, and
ends it; `end` tells the peak of its memory.
"""

import json
import os
import sys
import time
from typing import Any

import torch
from cases import read
from worker import peak_bytes, resident_bytes, touch_kernels


def loop_of(name: str) -> Any:
    """Return the class of a system's loop; only its own environment can import it."""
    if name == "theirs":
        from their_loop import Loop
        from theirs import load

        load()  # its import is no part of the memory of training
        return Loop
    from our_loop import Loop

    return Loop


def answer(request: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a request."""
    if request["do"] == "start":
        torch.set_num_threads(request["threads"])
        torch.manual_seed(0)
        loop = loop_of(sys.argv[1])
        touch_kernels()
        state["start"] = resident_bytes()
        state["loop"] = loop(read(request["case"]), request["folder"], request["save_at"])
        return {"params": state["loop"].params}
    if request["do"] == "step":
        wall, cpu = time.perf_counter(), time.process_time()
        state["loop"].step()
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    if request["do"] == "save":
        return {"save_s": state["loop"].save()}
    return {"peak_bytes": peak_bytes("cpu") - state["start"]}


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr
    state: dict[str, Any] = {}
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line), state)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
