"""What is asked of a cascade in one call, refused before anything is computed if it cannot be."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

from imagen import editing
from imagen.checks import check_labels, check_range, check_type
from imagen.editing import Edit
from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.provenance import without_null_text
from imagen.sampling import Extras, SampleOptions


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of one call of `Cascade.sample`."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    options: SampleOptions = field(default_factory=SampleOptions)
    edit: Edit | None = None
    extras: Extras = field(default_factory=Extras)

    def __post_init__(self) -> None:
        check_type("options", self.options, SampleOptions, "SampleOptions")
        check_type("extras", self.extras, Extras, "Extras")
        if self.edit is not None:
            check_type("edit", self.edit, Edit, "an Edit")
        prompts = _listed("prompts", self.prompts, str, "a text")
        seeds = [int(seed) for seed in _listed("seeds", self.seeds, Integral, "a whole number")]
        if not prompts or len(prompts) != len(seeds):
            raise ConfigError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one for each")
        if min(seeds) < 0 or max(seeds) >= 2**32:
            raise ConfigError(f"a seed of {seeds} is not in [0, 2^32)")
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "seeds", seeds)


def _listed(name: str, values: Iterable[Any], kind: type, what: str) -> list[Any]:
    """Return values, one an image, as a list. Raises ConfigError unless each is of a kind."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(
            f"{name} is {reprlib.repr(values)} ({type(values).__name__}), not a list",
            f"give one for each image: {name}=[{reprlib.repr(values)}]",
        )
    listed = list(values)
    for i, value in enumerate(listed):
        check_type(f"{name}[{i}]", value, kind, what)
    return listed


def plan(
    request: Request,
    members: Mapping[str, MemberConfig],
    provenances: Mapping[str, Mapping[str, Any]],
) -> dict[str, MemberConfig]:
    """Return the members that run, in order, with `sampling` as it was asked for.

    Raises ConfigError for whatever does not fit these members, or would have no effect.
    """
    options, edit = request.options, request.edit
    for key, names in (("members", [*options.members]), ("last", [options.last or [*members][-1]])):
        for name in names:
            if name not in members:
                raise ConfigError(
                    f"options.{key} has {name!r}, which is no member of the cascade",
                    f"members: {', '.join(members)}",
                )
    if edit is not None:
        editing.check(edit, members, len(request.prompts))
    running = {
        name: replace(config, sampling=options.resolve(name, config.sampling))
        for name, config in _range(members, edit, options.last).items()
    }
    if edit is not None:
        editing.check_size(edit, members, options.last)
        _check_masked(edit, options, running)
    _check_effect(options, running)
    for name, config in running.items():
        _check_guidance(name, config, provenances[name], options.negative)
    _check_negative(running, options.negative)
    _check_extras(running, request.extras, len(request.prompts))
    return running


def _range(
    members: Mapping[str, MemberConfig], edit: Edit | None, last: str | None
) -> dict[str, MemberConfig]:
    """Return the members from the first that an edit asks for to the last one wanted."""
    names = list(members)
    first = names.index(edit.first) if edit is not None else 0
    end = names.index(last) + 1 if last is not None else len(names)
    if end <= first:
        raise ConfigError(f"options.last {last!r} comes before edit.first {names[first]!r}")
    return {name: members[name] for name in names[first:end]}


def _check_masked(edit: Edit, options: SampleOptions, running: Iterable[str]) -> None:
    """Raise ConfigError for options that a masked edit does not read."""
    if edit.mask is None:
        return
    for name in running:
        for key in ("sampler", "stochasticity"):
            value = options.asked(name).get(key)
            if value is not None:
                raise ConfigError(
                    f"{key} {value!r} has no effect in a masked edit, which steps by RePaint",
                    f"leave the {key} out",
                )


def _check_effect(options: SampleOptions, running: Mapping[str, MemberConfig]) -> None:
    """Raise ConfigError for options of members that do not run, or do not read them."""
    for name in options.members:
        if name not in running:
            raise ConfigError(
                f"options.members.{name} has no effect: only {', '.join(running)} runs",
                f"leave {name} out, or let it run (options.last, edit.first)",
            )
    blind = [name for name, config in running.items() if config.network.kind == "base"]
    blind_only = len(blind) == len(running)
    for name in blind:
        own = "aug_level" in options.members.get(name, {})
        level = options.asked(name).get("aug_level")
        if own or (blind_only and level is not None):
            raise ConfigError(
                f"aug_level {level} has no effect on {name}, which has no low-resolution image",
                "it is the noise on what a super-resolution member enlarges",
            )


def _is_guided(config: MemberConfig) -> bool:
    network = config.network
    return config.sampling.guidance_scale != 1 and bool(network.text_dim or network.num_classes)


def _check_guidance(
    name: str, config: MemberConfig, provenance: Mapping[str, Any], negative: str | None
) -> None:
    if not without_null_text(provenance):
        return
    what = f"guidance_scale {config.sampling.guidance_scale}" if _is_guided(config) else None
    if negative is not None and config.network.text_dim:
        what = what or "a negative prompt"
    if what is not None:
        raise ConfigError(
            f"{what} for member {name}, which was trained without null text (caption_drop 0): "
            "guidance would compare with what it never learnt",
            f"sample {name} with guidance_scale 1 and no negative prompt, or train it with "
            f"train.{name}.caption_drop=0.1",
        )


def _check_negative(running: Mapping[str, MemberConfig], negative: str | None) -> None:
    if negative is None:
        return
    guided = {n: c for n, c in running.items() if _is_guided(c) and c.network.text_dim}
    if not guided:
        raise ConfigError(
            f"negative prompt {negative!r} has no effect: no member is guided by text",
            "set a guidance_scale other than 1",
        )
    for name, config in guided.items():
        if config.network.num_classes:
            raise ConfigError(
                f"negative prompt {negative!r} for member {name}, which has classes: the label "
                "would stay in both halves, so guidance would not lead towards it",
                f"leave the negative prompt out, or set guidance_scale 1 for {name}",
            )


def _check_extras(running: Mapping[str, MemberConfig], extras: Extras, count: int) -> None:
    for key, field_name in (("num_classes", "labels"), ("image_channels", "images")):
        takes = [name for name, c in running.items() if getattr(c.network, key)]
        given = getattr(extras, field_name) is not None
        if given and not takes:
            raise ConfigError(f"extras.{field_name} is given, but no member takes it ({key} is 0)")
        if takes and not given:
            number = getattr(running[takes[0]].network, key)
            raise ConfigError(
                f"extras.{field_name} is missing: member {takes[0]} has {key} {number}"
            )
    for name, config in running.items():
        network = config.network
        if network.num_classes and extras.labels is not None:
            check_labels(f"extras.labels, for {name},", extras.labels, network.num_classes, count)
        if network.image_channels and extras.images is not None:
            check_range("extras.images", extras.images)
            shape = tuple(extras.images.shape)
            if len(shape) != 4 or shape[:2] != (count, network.image_channels):
                raise ConfigError(
                    f"extras.images is {shape}, member {name} takes "
                    f"({count}, {network.image_channels}, h, w)"
                )
