"""What is asked of a cascade in one call, refused before anything is computed if it cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imagen import editing
from imagen.checks import check_labels, check_range
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
        prompts, seeds = self.prompts, self.seeds
        if not prompts or len(prompts) != len(seeds):
            raise ConfigError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one for each")
        if min(seeds) < 0 or max(seeds) >= 2**32:
            raise ConfigError(f"a seed of {list(seeds)} is not in [0, 2^32)")


def plan(
    request: Request,
    members: Mapping[str, MemberConfig],
    provenances: Mapping[str, Mapping[str, Any]],
) -> dict[str, MemberConfig]:
    """Return the members that run, in order, with `sampling` as it was asked for.

    Raises ConfigError for whatever does not fit these members.
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
        _check_edit_options(edit, options)
    running = {
        name: replace(config, sampling=options.resolve(name, config.sampling))
        for name, config in _range(members, edit, options.last).items()
    }
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


def _check_edit_options(edit: Edit, options: SampleOptions) -> None:
    chosen = options.sampler or next(
        (keys["sampler"] for keys in options.members.values() if "sampler" in keys), None
    )
    if edit.mask is not None and chosen is not None:
        raise ConfigError(
            f"sampler {chosen!r} has no effect in a masked edit, which steps by RePaint",
            "leave the sampler out",
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
    if negative is not None and not any(
        _is_guided(config) and config.network.text_dim for config in running.values()
    ):
        raise ConfigError(
            f"negative prompt {negative!r} has no effect: no member is guided by text",
            "set a guidance_scale other than 1",
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
