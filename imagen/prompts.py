"""Files of prompts."""

from imagen import storage
from imagen.errors import ConfigError


def read_prompts(path: str) -> list[str]:
    """Return the lines of a text file that are not blank. Raises ConfigError."""
    if not storage.exists(path):
        raise ConfigError(
            f"prompts file `{path}` does not exist", "give a text file with one prompt a line"
        )
    try:
        lines = storage.get(path).decode("utf8").splitlines()
    except UnicodeDecodeError as err:
        raise ConfigError(f"prompts file `{path}` is not UTF-8 text: {err}") from err
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts file `{path}` has no prompts: every line is blank")
    return prompts
