"""Print the requirements of a pyproject.toml: python requirements.py FILE EXTRA…

The image installs them without building the project, so that a change of code costs no layer.
"""

import sys
import tomllib


def main(path: str, *extras: str) -> None:
    """Print one requirement a line."""
    with open(path, "rb") as file:
        project = tomllib.load(file)["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    print("\n".join(found))


main(*sys.argv[1:])
