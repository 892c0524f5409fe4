"""The line of stages as a graph: what each needs first, how it is started, how far it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval import stage as eval_stage
from imagen import storage
from pipeline.config import PipelineConfig
from preencode import prepare as prepare_stage
from preencode import stage as preencode_stage
from runtime.state import StageState
from train import stage as train_stage
from train.logs import LOG


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
    return [*importing, encode, *preparing, *trainings, evaluate]


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
