import subprocess
import sys

import pytest

from imagen import cli
from imagen.cli.arguments import KEYS
from imagen.diffusion.samplers import SAMPLERS

COMMANDS = ["sample", "edit", "upscale"]


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples_that_parse(command, capsys):
    import shlex

    text = help_of(capsys, command)
    examples = text.split("examples\n")[1].split("\n\n")[0].replace("\\\n", " ").splitlines()
    assert len(examples) >= 3
    for example in examples:
        program, *words = shlex.split(example.partition("  (")[0])
        assert (program, words[0]) == ("imagen", command)
        cli.parser().parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_sampler_and_every_key_of_set(command, capsys):
    text = " ".join(help_of(capsys, command).split())
    assert f"{', '.join(SAMPLERS)} (default: as configured)" in text
    assert ", ".join(KEYS) in text


def test_help_lists_the_commands(capsys):
    text = help_of(capsys)
    assert all(f"    {command} " in text for command in [*COMMANDS, "plan"])


def test_help_and_the_parser_need_neither_torch_nor_rich():
    code = (
        "import sys, imagen.cli; imagen.cli.parser(); "
        "print(*sorted({'torch', 'transformers', 'rich', 'pydantic', 'fsspec'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_interrupt_ends_without_a_traceback(monkeypatch, capsys):
    from imagen.cli import arguments

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(arguments, "read_prompts", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["sample", "--prompts", "x", "--cascade", "c", "--out", "o"])
    assert (caught.value.code, capsys.readouterr().err) == (130, "interrupted\n")
