"""The house rules of CONTRIBUTING.md that a machine can check."""

import ast
import contextlib
import importlib.machinery
import io
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from imagen.errors import ImagenError
from runtime import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["importlinter"]["root_packages"]
FUNCTION_LINES, TRAINING_LOOP_LINES, FILE_LINES = 60, 100, 300
OTHER_PROGRAMS = ("git", "cd", "source", "tensorboard")
CODE = {".py", ".yaml", ".js", ".html", ".toml"}


def code_files(suffixes=frozenset({".py"})):
    folders = [*PACKAGES, "benchmarks", "export", "infra"]
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    return sorted(path.relative_to(ROOT) for path in found)


def test_packages_import_each_other_in_the_declared_directions_only():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("()", "(no_cache=True)")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_wheel_contains_the_library_only(tmp_path):
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    version = PROJECT["project"]["version"]
    assert {name.split("/")[0] for name in names} == {
        "imagen",
        f"imagen_cascade-{version}.dist-info",
    }
    assert "imagen/storage.py" in names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_shadows_no_installed_module(package):
    installed = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    assert importlib.machinery.PathFinder.find_spec(package, installed) is None
    assert package not in sys.stdlib_module_names


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_a_regular_one_so_that_no_installed_one_wins(package):
    folders = {path.parent for path in code_files() if path.parts[0] == package}
    assert [str(f) for f in folders if not (ROOT / f / "__init__.py").exists()] == []


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_files_and_functions_are_short():
    too_long = []
    for path in code_files():
        text = (ROOT / path).read_text()
        if text.count("\n") > FILE_LINES:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        limit = TRAINING_LOOP_LINES if path == Path("train/loop.py") else FUNCTION_LINES
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > limit:
                    too_long.append(f"{path}: {node.name} has {lines} lines")
    assert too_long == []


def test_no_file_is_a_drawer_for_everything():
    assert [p for p in code_files() if p.stem in ("utils", "util", "helpers", "common")] == []


def readme_blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^```([a-z]*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def tree_paths(block):
    """Return the paths that an indented tree lists: one or more names, then what they are."""
    paths, folders = [], []
    for line in block.splitlines():
        bare = re.sub(r"[│├└─]", " ", line)
        names = re.split(r"\s{2,}|\s#|\s—", bare.strip())[0]
        if not names:
            continue
        depth = len(bare) - len(bare.lstrip())
        folders = [(d, name) for d, name in folders if d < depth]
        for name in re.split(r",\s*", names):
            paths.append("".join(folder for _, folder in folders) + name)
            if name.endswith("/"):
                folders.append((depth, name))
    return paths


def readme_tree():
    trees = [block for _, block in readme_blocks() if re.search(r"^\W*imagen/", block, re.M)]
    assert len(trees) == 1, "README.md has one fenced file tree, with a line that starts `imagen/`"
    return tree_paths(trees[0])


def test_a_tree_is_read_with_indents_lines_and_several_names():
    drawn = "imagen/   library\n├── a.py, b.py   roles\n└── text/\n    └── c.py  # role\nMakefile\n"
    plain = "imagen/   library\n  a.py, b.py   roles\n  text/\n    c.py — role\nMakefile\n"
    wanted = ["imagen/", "imagen/a.py", "imagen/b.py", "imagen/text/", "imagen/text/c.py"]
    assert tree_paths(drawn) == tree_paths(plain) == [*wanted, "Makefile"]


def test_the_tree_in_the_readme_lists_every_code_file():
    listed = set(readme_tree())
    files = [p for p in code_files(CODE) if p.name != "__init__.py"]
    assert [str(path) for path in files if str(path) not in listed] == []


def test_everything_in_the_readmes_tree_exists():
    assert [path for path in readme_tree() if not (ROOT / path).exists()] == []


def readme_commands():
    """Return the command lines in the README's shell blocks."""
    blocks = [block for kind, block in readme_blocks() if kind in ("bash", "sh", "console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.strip() and line[0] != "#"]


class Captured(Exception):
    """Carries the parser of a program that would run now."""


def parser_of(module, words, monkeypatch):
    """Return the parser of `python -m module words`, and the words that are left to it."""

    def capture(_, parser):
        raise Captured(parser)

    with monkeypatch.context() as patch:
        patch.setattr(cli, "main", capture)
        patch.setattr(sys, "argv", [module, *words])
        # runpy warns of a program that somebody has imported, as other tests do
        patch.delitem(sys.modules, f"{module}.__main__", raising=False)
        try:
            runpy.run_module(module, run_name="__main__")
        except Captured as captured:
            return captured.args[0], sys.argv[1:]
    raise AssertionError(f"{module} does not start by runtime.cli.main")


def problem(command, monkeypatch):
    """Return what is wrong with a command line, None when it parses."""
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        return None if words and words[0] in targets else "no such target"
    if program == "imagen":
        from imagen.cli import parser

        return rejected(lambda: parser().parse_args(words))
    if program == "python" and words[:1] == ["-m"] and words[1] in PACKAGES:
        made, left = parser_of(words[1], words[2:], monkeypatch)
        return rejected(lambda: check_config(cli._parse(made, left)))
    return None if program in OTHER_PROGRAMS else "unknown program"


def check_config(args):
    from pipeline.config import load

    if getattr(args, "config", "CONFIG") != "CONFIG":
        keys = [o for o in args.overrides if not o.startswith("member=")]
        load(str(ROOT / args.config), keys)


def rejected(parse):
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            parse()
        except SystemExit as end:
            return told.getvalue() if end.code else None  # --help ends with 0
        except ImagenError as err:
            return str(err)
    return None


def test_every_command_in_the_readme_parses_and_its_config_loads(monkeypatch):
    commands = readme_commands()
    assert len(commands) > 5
    found = {command: problem(command, monkeypatch) for command in commands}
    assert {command: why for command, why in found.items() if why} == {}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("make demmo", "no such target"),
        ("python -m pipeline rnu x.yaml", "invalid choice"),
        ("python -m train pipeline/configs/digits.yaml --dryrun", "unrecognized arguments"),
        ("python -m eval pipeline/configs/digits.yaml eval.cuont=3", "unknown key `eval.cuont`"),
        ("imagen smaple seven", "invalid choice"),
        ("rm -rf /", "unknown program"),
    ],
)
def test_a_wrong_command_is_found(command, why, monkeypatch):
    assert why in (problem(command, monkeypatch) or "")


@pytest.mark.parametrize("command", ["format --check", "check"])
def test_code_is_formatted_and_clean(command):
    words = [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_the_readme_has_no_gaps_and_its_pictures_exist():
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
