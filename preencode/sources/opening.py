"""From the config to a listed source, and from a word of the command line to a kind."""

import json

from imagen.config import parse_yaml
from imagen.errors import ConfigError
from preencode.sources import tables
from preencode.sources.config import KINDS, SourceConfig
from preencode.sources.rows import Source


def open_source(config: SourceConfig, seed: int) -> Source:
    """List a source; what it needs is imported for its kind alone. Raises ConfigError."""
    if config.name == "folder":
        from preencode.sources.folder import FolderSource as Kind
    elif config.name == "hub":
        from preencode.sources.hub import HubSource as Kind
    elif config.name == "urls":
        from preencode.sources.urls import UrlsSource as Kind
    elif config.name == "shapes":
        from preencode.sources.generated import ShapesSource as Kind
    else:
        from preencode.sources.generated import DigitsSource as Kind
    return Kind(config, seed)


def overrides_of(word: str) -> list[str]:
    """Return what SOURCE, a kind or a path, sets in the config. Raises ConfigError."""
    from preencode.sources.listing import is_folder

    if word in KINDS:
        return [f"source.name={word}"]
    if tables.suffix_of(word) in tables.SUFFIXES:
        return ["source.name=urls", f"source.path={_value(word)}"]
    if "/" in word or is_folder(word):
        return ["source.name=folder", f"source.path={_value(word)}"]
    raise ConfigError(
        f"unknown source `{word}`; known: {', '.join(KINDS)}",
        f"or give the folder of the images, or a list ({', '.join(tables.SUFFIXES)})",
    )


def _value(word: str) -> str:
    """Return a word as an override has it: quoted where YAML would read something else."""
    try:
        plain = parse_yaml(word, "SOURCE") == word
    except ConfigError:
        plain = False
    return word if plain else json.dumps(word)
