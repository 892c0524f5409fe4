"""One loader for every config: YAML file <- dotted overrides <- strict dataclass.

A config file has top-level sections. Sections that belong to another stage (`SECTIONS`) are left
to that stage; everything else must be known to the dataclass that is asked for, at every depth.
"""

import dataclasses
import difflib
import io
from collections.abc import Hashable, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

import yaml

from imagen import storage
from imagen.errors import ConfigError
from imagen.redaction import redacted, secrets_in

T = TypeVar("T")

SECTIONS = ("source", "preencode", "train", "eval", "publish")
"""Top-level keys that one stage owns; other stages skip them."""


_MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML keeps the last one in silence)."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue  # `<<: *other` is no key
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            continue  # refused below, with its line
        line = key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(
                f"key `{key}` is given twice, on lines {seen[key]} and {line}",
                "keep one of the two",
            )
        seen[key] = line
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text. Raises ConfigError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err.message}", err.hint) from None
    except yaml.YAMLError as err:
        raise ConfigError(f"{where}: not valid YAML: {err}") from err


def read_tree(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the file's tree with `a.b=value` overrides applied (values are YAML)."""
    if not storage.exists(path):
        raise ConfigError(
            f"config file `{path}` does not exist",
            "give the path of a YAML file, for example `pipeline/configs/digits.yaml`",
        )
    try:
        text = storage.get(path).decode("utf8")
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: not a text file in UTF-8: {err}") from err
    tree = parse_yaml(text, path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping, not a {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override `{override}` is not of the form key.key=value")
    *parents, last = dotted.split(".")
    for i, key in enumerate(parents):
        if tree.get(key) is None:
            tree[key] = {}  # absent, or a section without content
        tree = tree[key]
        if not isinstance(tree, dict):
            raise ConfigError(f"override `{override}`: `{'.'.join(parents[: i + 1])}` is a value")
    tree[last] = parse_yaml(value, f"override `{override}`")


def load_config(cls: type[T], path: str, overrides: Sequence[str] = ()) -> T:
    """Return the `cls` that the file and its overrides describe. Raises ConfigError."""
    tree = read_tree(path, overrides)
    _refuse_secrets(tree, path)
    return build(cls, tree, where=path)


def _refuse_secrets(tree: dict[str, Any], path: str) -> None:
    for key in secrets_in(tree):
        raise ConfigError(
            f"`{key}` of `{redacted(path)}` holds a secret, and configs are stored beside outputs",
            "take it out: credentials belong into the environment, see docs/storage.md",
        )


def build(cls: type[T], tree: dict[str, Any], where: str = "config") -> T:
    """Return a strict `cls` from plain values; sections of other stages are skipped."""
    import pydantic  # costs 0.4 s: only who loads a config pays

    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    mine = {k: v for k, v in tree.items() if k in fields or k not in SECTIONS}
    model = pydantic.create_model(
        "Root", __config__=pydantic.ConfigDict(extra="forbid"), root=(cls, ...)
    )  # extra="forbid" reaches nested dataclasses only from an enclosing model
    try:
        return model(root=mine).root  # type: ignore[attr-defined]
    except pydantic.ValidationError as err:
        raise ConfigError(*_explain(err, cls, where)) from None


def _explain(err: Any, cls: type, where: str) -> tuple[str, str | None]:
    lines, hint = [], None
    for item in err.errors():
        location = [str(part) for part in item["loc"][1:]]
        dotted = ".".join(location) or "(top level)"
        if item["type"] == "unexpected_keyword_argument" or item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(location[-1], _known_keys(cls), n=1)
            hint = hint or (f"did you mean `{near[0]}`?" if near else None)
            lines.append(f"{where}: unknown key `{dotted}`")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{where}: key `{dotted}` is missing")
        else:
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, ConfigError):
                hint = hint or cause.hint
                lines.append(f"{where}: `{dotted}`: {cause.message}")
            else:
                lines.append(f"{where}: `{dotted}`: {item['msg']}, got {item['input']!r}")
    return "\n".join(lines), hint


def _known_keys(cls: type) -> list[str]:
    """Names of all fields of a dataclass and of the dataclasses in its annotations."""
    import typing

    names: list[str] = []
    for name, annotation in typing.get_type_hints(cls).items():
        names.append(name)
        for part in (annotation, *typing.get_args(annotation)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                names.extend(_known_keys(part))
    return names


def to_tree(config: Any) -> Any:
    """Return a config as plain dicts, lists and scalars: what `build` accepts."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_tree(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_tree(value) for value in config]
    return str(config) if isinstance(config, PurePath) else config


def dump_yaml(config: Any) -> str:
    """Return the resolved config as YAML, itself a valid input."""
    out = io.StringIO()
    yaml.safe_dump(to_tree(config), out, sort_keys=False, default_flow_style=None, width=100)
    return out.getvalue()
