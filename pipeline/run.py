"""Runs what is not done yet, in order, on one Ray."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from imagen import storage
from imagen.errors import StorageError
from pipeline import children
from pipeline.stages import Stage, reasons, shares, waves
from runtime import progress, session
from runtime.cli import say
from runtime.state import lock


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a run of the line did."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> how long it took; a stage that was done before is not in it."""
    failed: dict[str, int] = field(default_factory=dict)
    """Stage -> exit status that is not 0."""


def cluster_resources(address: str) -> Mapping[str, float]:
    """Return what a Ray cluster has in total, and what it can have."""
    with session.connect(address):
        import ray

        return {**session.expected(), **ray.cluster_resources()}


def run(
    stages: Sequence[Stage],
    out: str,
    address: str | None = None,
    resources_of: Callable[[str], Mapping[str, float]] = cluster_resources,
) -> Outcome:
    """Run the stages that are not done, side by side where they do not need each other.

    Raises StorageError when another process is at work below `out`.
    """
    outcome = Outcome()
    logs = storage.join(out, "logs")
    with lock(logs), contextlib.ExitStack() as stack:
        environment: dict[str, str] = {}
        for wave in waves(stages):
            todo = [stage for stage in wave if is_due(stage)]
            if not todo:
                continue
            if not environment:
                environment.update(stack.enter_context(_ray(stages, address)))
            together = len(todo) == 1 or _fenced(todo, resources_of(environment["RAY_ADDRESS"]))
            for group in [todo] if together else [[stage] for stage in todo]:
                _run_group(group, environment, logs, outcome)
            if outcome.failed:
                break
    return outcome


def _fenced(todo: Sequence[Stage], there: Mapping[str, float]) -> bool:
    """Tell whether each training has a resource of its own, without which one may starve."""
    fences = [f"imagen_{stage.training.member}" for stage in todo if stage.training]
    if len(fences) < 2 or all(fence in there for fence in fences):
        return True
    say(
        f"the cluster has no resources {', '.join(fences)} that keep trainings apart: "
        "they run one after the other"
    )
    return False


def is_due(stage: Stage, otherwise: bool = False) -> bool:
    """Tell whether a stage is not done, also the person. `otherwise`: a job of ours runs it, with
    other settings.

    Raises StorageError when somebody else runs it.
    """
    state = stage.state()
    if state.status == "running" and not otherwise:
        raise StorageError(
            f"{stage.name} is being run by another process: {state.detail}",
            "wait for it to end, then run again",
        )
    if state.status == "done":
        say(f"{stage.name}: done already ({state.detail})")
        return False
    say(f"{stage.name}: {state.status}, {state.detail}")
    return True


@contextlib.contextmanager
def _ray(stages: Sequence[Stage], address: str | None) -> Iterator[Mapping[str, str]]:
    """Yield the environment by which the stages find Ray: the given one, else one of our own."""
    given = address or os.environ.get("RAY_ADDRESS")
    if given:
        yield {"RAY_ADDRESS": given}
        return
    split = shares([stage for stage in stages if stage.state().status != "done"], cores())
    started = time.monotonic()
    with session.connect(
        num_cpus=max(cores(), sum(split.values())),
        resources={f"imagen_{member}": count for member, count in split.items()},
    ) as joined:
        say(f"started a local Ray in {time.monotonic() - started:.0f} s")
        yield {"RAY_ADDRESS": joined}


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_group(
    todo: Sequence[Stage], environment: Mapping[str, str], logs: str, outcome: Outcome
) -> None:
    alone = len(todo) == 1
    with children.start(todo, environment, None if alone else logs) as running:
        if alone:
            _wait(running[0])
        else:
            for stage in todo:
                say(f"{stage.name}: output in {storage.join(logs, children.log_name(stage))}")
            _follow(running)
        for child in running:
            _note(child, outcome)


def _wait(child: children.Child) -> None:
    while child.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(1.0)  # short waits, so that a signal is handled soon


def _follow(running: Sequence[children.Child]) -> None:
    """Show the trainings until all have ended; tell at once when one has failed."""
    told: set[str] = set()

    def finished() -> bool:
        for child in running:
            if child.poll() and child.stage.name not in told:
                told.add(child.stage.name)
                say(f"{child.stage.name}: failed; the others go on")
        return all(child.poll() is not None for child in running)

    trainings = [child.stage.training for child in running if child.stage.training]
    progress.follow(
        {training.member: training.log for training in trainings},
        {training.member: training.images for training in trainings},
        finished,
    )


def _note(child: children.Child, outcome: Outcome) -> None:
    name, status = child.stage.name, child.poll()
    outcome.seconds[name] = child.seconds
    if status:
        outcome.failed[name] = status
        for line in child.tail():
            say(f"  {line}")
        by = f"signal {-status}" if status < 0 else f"status {status}"
        say(f"{name}: failed with {by} after {child.seconds:.0f} s")
    else:
        say(f"{name}: finished in {child.seconds:.0f} s")


def dry_run(stages: Sequence[Stage]) -> str:
    """Return what `run` would do and why, one line a stage; touches nothing."""
    why = reasons(stages, {stage.name: stage.state() for stage in stages})
    width = max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        reason = why[stage.name]
        command = " ".join(("python", *stage.arguments))
        text = "skip: done" if reason is None else f"run:  {reason}\n{'':{width}}        {command}"
        lines.append(f"{stage.name:{width}}  {text}")
    return "\n".join(lines)
