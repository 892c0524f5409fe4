"""The line of stages as a graph: what each needs first, how it is started, how far it is."""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from eval import published as publish_stage
from eval import stage as eval_stage
from imagen import storage
from imagen.errors import ConfigError
from pipeline.config import PipelineConfig
from preencode import prepare as prepare_stage
from preencode import stage as preencode_stage
from runtime.state import StageState
from train import stage as train_stage
from train.logs import LOG

TRAIN = "train"
"""On a command line: the trainings of all members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Where a training stage tells how it goes."""

    member: str
    log: str
    """Path or URL of its log.jsonl."""
    images: int
    """Images that the whole run sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the line."""

    name: str
    arguments: tuple[str, ...]
    """Command line, after the Python interpreter."""
    after: tuple[str, ...] = ()
    """Names of the stages whose outputs this one reads."""
    state: Callable[[], StageState]
    """Looks at the files and says how far the stage is."""
    training: Training | None = None

    @property
    def slug(self) -> str:
        """The name as a command line and a job's id have it: `train-base`."""
        return self.name.replace(" ", "-")


def line(config: PipelineConfig) -> list[Stage]:
    """Return the stages of a config in an order that respects what each reads."""
    source = config.preencode.source
    importing = [_import(config, source.name)] if source else []
    encode = Stage(
        name="preencode",
        arguments=("-m", "preencode", *config.arguments),
        after=tuple(stage.name for stage in importing),
        state=lambda: preencode_stage.encode_state(config.preencode),
    )
    preparing = [_prepare(config)] if config.train.data.prepare else []
    data = [encode, *preparing][-1].name
    trainings = [_train(config, member, after=data) for member in config.train.members]
    evaluate = Stage(
        name="eval",
        arguments=("-m", "eval", *config.arguments),
        after=tuple(stage.name for stage in trainings),
        state=lambda: eval_stage.state(config.eval),
    )
    publishing = [_publish(config)] if config.eval.publish else []
    return [*importing, encode, *preparing, *trainings, evaluate, *publishing]


def _import(config: PipelineConfig, source: str) -> Stage:
    return Stage(
        name="import",
        arguments=("-m", "preencode", "import", source, *config.arguments),
        state=lambda: preencode_stage.import_state(config.preencode),
    )


def _prepare(config: PipelineConfig) -> Stage:
    return Stage(
        name="prepare",
        arguments=("-m", "preencode", "prepare", *config.arguments),
        after=("preencode",),
        state=lambda: prepare_stage.prepare_state(config.preencode),
    )


def _train(config: PipelineConfig, member: str, after: str) -> Stage:
    path, *overrides = config.arguments
    return Stage(
        name=f"train {member}",
        arguments=("-m", "train", path, f"member={member}", *overrides),
        after=(after,),
        state=lambda: train_stage.state(config.train, member),
        training=Training(
            member=member,
            log=storage.join(config.train.run_dir(member), LOG),
            images=config.train.of(member).total,
        ),
    )


def _publish(config: PipelineConfig) -> Stage:
    return Stage(
        name="publish",
        arguments=("-m", "eval", "publish", *config.arguments),
        after=("eval",),
        state=lambda: publish_stage.state(config.eval),
    )


def select(
    stages: Sequence[Stage],
    only: str | None = None,
    first: str | None = None,
    last: str | None = None,
) -> list[Stage]:
    """Return the stages that --only, --from and --until ask for, in the order of the line.

    `first`: it and what needs it; `last`: it and what it needs; both: what lies between. `train`
    stands for the trainings of all members. What is left out is not waited for. Raises ConfigError.
    """
    if only and (first or last):
        raise ConfigError("--only goes without --from and --until", "it names the only stage")
    chosen = {stage.name for stage in stages}
    if only:
        chosen &= _named(stages, only)
    if first:
        chosen &= _closure(_named(stages, first), _needed_by(stages))
    if last:
        chosen &= _closure(_named(stages, last), {stage.name: stage.after for stage in stages})
    if not chosen:
        raise ConfigError(
            f"no stage needs {first} and is needed by {last}",
            f"the stages are: {', '.join(stage.slug for stage in stages)}",
        )
    kept = [stage for stage in stages if stage.name in chosen]
    return [replace(s, after=tuple(a for a in s.after if a in chosen)) for s in kept]


def _named(stages: Sequence[Stage], word: str) -> set[str]:
    """Return the names that a word of the command line stands for. Raises ConfigError."""
    slug = word.replace(" ", "-")
    found = {stage.name for stage in stages if stage.slug == slug}
    if slug == TRAIN:
        found = {stage.name for stage in stages if stage.training}
    if found:
        return found
    known = [stage.slug for stage in stages]
    near = difflib.get_close_matches(slug, [*known, TRAIN], n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"the line of this config has no stage {word!r}",
        f"{meant}the stages are: {', '.join(known)}",
    )


def _needed_by(stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """Return for each stage those that read its outputs."""
    return {s.name: tuple(t.name for t in stages if s.name in t.after) for s in stages}


def _closure(names: Collection[str], edges: Mapping[str, Sequence[str]]) -> set[str]:
    """Return names and all that is reached from them along edges."""

    def reached(name: str) -> Iterator[str]:
        yield name
        for other in edges[name]:
            yield from reached(other)

    return {found for name in names for found in reached(name)}


def waves(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Return the stages in groups: one group can run side by side once those before are done."""
    left, finished, groups = list(stages), set(), []
    while left:
        group = [stage for stage in left if finished.issuperset(stage.after)]
        assert group, f"stages wait for each other: {[stage.name for stage in left]}"
        groups.append(group)
        finished.update(stage.name for stage in group)
        left = [stage for stage in left if stage.name not in finished]
    return groups


def reasons(stages: Sequence[Stage], states: Mapping[str, StageState]) -> dict[str, str | None]:
    """Return for each stage why it will run, None when it is done and nothing before it runs."""
    why: dict[str, str | None] = {}
    for stage in stages:
        state = states[stage.name]
        before = [name for name in stage.after if why[name] is not None]
        if state.status != "done":
            why[stage.name] = f"{state.status}: {state.detail}"
        elif before:
            why[stage.name] = f"done, but looked at again after {' and '.join(before)}"
        else:
            why[stage.name] = None
    return why


def shares(stages: Sequence[Stage], cores: int) -> dict[str, int]:
    """Return the workers that each training may have: the cores split evenly, at least one each.

    Elastic Ray Train sizes itself by what a cluster has, not by what is free, so two runs on one
    cluster each need a resource of their own (`imagen_<member>`) or one starves for ever.
    """
    members = [stage.training.member for stage in stages if stage.training]
    return {member: max(1, cores // len(members)) for member in members}
