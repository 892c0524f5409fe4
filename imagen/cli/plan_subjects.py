"""What `imagen plan` is asked about: presets, cascades and configs, and how each is trained."""

import argparse
import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import yaml

from imagen import storage
from imagen.config import build, load_config, read_tree, to_tree
from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.memory import Setting
from imagen.presets import CASCADES, Preset, as_members, find
from imagen.project import ProjectConfig, check_chain
from imagen.text.config import TextConfig

_TRAIN_KEYS = ("precision", "checkpoint_levels", "crop_px")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One member to plan."""

    name: str
    """Name of the preset, or of the member in its config."""
    member: MemberConfig
    """The member."""
    setting: Setting
    """How it is trained."""
    microbatch: int | None = None
    """Its microbatch, where a config says so."""
    preset: Preset | None = None
    """The preset it is, if it is one."""


def subjects(args: argparse.Namespace) -> list[Subject]:
    """Return the members that the command line names. Raises ConfigError."""
    found = []
    for name in args.names:
        if name.endswith((".yaml", ".yml")) or storage.exists(name):
            found += _of_config(name)
        else:
            names = CASCADES[name].presets if name in CASCADES else (name,)
            found += [_of_preset(find(preset)) for preset in names]
    return [_with_options(subject, args) for subject in found]


def _of_preset(preset: Preset) -> Subject:
    setting = Setting(crop_px=preset.crop_px)
    return Subject(name=preset.name, member=preset.member, setting=setting, preset=preset)


def _of_config(path: str) -> list[Subject]:
    """Return a config's members; its `train` section says how they are trained, if it has one."""
    config = load_config(ProjectConfig, path)
    sections = read_tree(path).get("train") or {}
    found = []
    for name, member in config.members.items():
        section: dict[str, Any] = sections.get(name) or {}
        said = {key: section[key] for key in _TRAIN_KEYS if key in section}
        said["tokens"] = config.text.max_tokens
        setting = build(Setting, said, where=f"{path}: train.{name}")
        images = section.get("microbatch")
        found.append(Subject(name=name, member=member, setting=setting, microbatch=images))
    return found


def _with_options(subject: Subject, args: argparse.Namespace) -> Subject:
    """Return a subject changed by what the command line says."""
    said = {
        key: getattr(args, key)
        for key in ("precision", "optimizer", "tokens")
        if getattr(args, key) is not None
    }
    if args.checkpoint_levels is not None:
        said["checkpoint_levels"] = _levels(args.checkpoint_levels, subject.member)
    return replace(subject, setting=replace(subject.setting, **said))


def _levels(text: str, member: MemberConfig) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(len(member.network.widths)))
    try:
        return tuple(int(level) for level in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--checkpoint-levels {text} is neither `all` nor numbers", "for example 0,1"
        ) from None


def members_yaml(chosen: list[Subject]) -> str:
    """Return a config's `members:` section, and what goes with it as comments.

    Raises ConfigError unless the members form a cascade.
    """
    presets = [subject.preset for subject in chosen if subject.preset is not None]
    if len(presets) < len(chosen):
        raise ConfigError("--yaml is for presets: a config has its `members:` section already")
    encoders = list(dict.fromkeys(preset.encoder for preset in presets))
    if len(encoders) > 1:
        raise ConfigError(
            f"{', '.join(preset.name for preset in presets)} are for different text encoders: "
            f"{', '.join(encoders)}",
            "take members of one kind, for example all of -m",
        )
    members = as_members(presets)
    check_chain(members, TextConfig(encoder=encoders[0]))
    head = f"# {', '.join(preset.name for preset in presets)}\n# text: {{encoder: {encoders[0]}}}\n"
    for name, preset in zip(members, presets, strict=True):
        if preset.crop_px:
            head += f"# train.{name}.crop_px: {preset.crop_px}\n"
    tree = {"members": {name: _changed(member) for name, member in members.items()}}
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)


def _changed(config: Any) -> dict[str, Any]:
    """Return the fields of a config that differ from their defaults, as plain values."""
    tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if value != default:
            nested = dataclasses.is_dataclass(value)
            tree[field.name] = _changed(value) if nested else to_tree(value)
    return tree
