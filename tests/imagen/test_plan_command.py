import re
import shlex
import subprocess
import sys

import pytest

from imagen import cli
from imagen.config import build, load_config, parse_yaml
from imagen.memory import Setting, training
from imagen.presets import CASCADES, PRESETS
from imagen.project import ProjectConfig

MEMBERS = """
name: toy
out: runs/toy
text: {max_tokens: 7}
members:
  base:
    size: 8
    network: {kind: base, channels: 1, widths: [16], blocks: [1], self_attention: [false],
      cross_attention: [true], text_dim: 256, cond_dim: 16, head_dim: 16}
"""
TRAIN = """
train:
  base: {microbatch: 3, precision: bf16, checkpoint_levels: [0], images: 10, global_batch: 3}
"""


@pytest.fixture
def plan(capsys):
    """Run `imagen plan`; return standard output, or the error message of a refusal."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            cli.main(["plan", *words])
        out, err = capsys.readouterr()
        assert err == "" if caught.value.code == 0 else caught.value.code == 2
        return out if caught.value.code == 0 else err

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(MEMBERS + TRAIN)
    return str(path)


def cells(out, first):
    """Return the cells of the row that starts with `first`."""
    return next(line.split() for line in out.splitlines() if line.split()[:1] == [first])


def test_alone_it_lists_presets_and_cascades_with_their_sizes(plan):
    out = plan()
    for preset in PRESETS.values():
        assert f"{preset.parameters:,}" in cells(out, preset.name)
    for cascade in CASCADES.values():
        total = sum(PRESETS[name].parameters for name in cascade.presets)
        assert f"{total:,}" in cells(out, cascade.name)
    assert max(map(len, out.splitlines())) < 130


@pytest.mark.slow
def test_a_table_shows_parts_that_grow_with_the_microbatch_and_parts_that_do_not(plan, tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text(MEMBERS.replace("widths: [16]", "widths: [256]"))
    out = plan(str(path))
    rows = [cells(out, str(images)) for images in (1, 4, 16, 64)]
    member = load_config(ProjectConfig, str(path)).members["base"]
    weights = 4e-6 * training(member, Setting(tokens=7)).parameters
    for row in rows:
        assert [float(row[i]) for i in (1, 3, 5, 7)] == pytest.approx(
            [weights, weights, 2 * weights, weights], abs=0.06
        )
    activations, whole, sampling = ([float(row[i]) for row in rows] for i in (11, 13, 15))
    for grows in (activations, whole, sampling):
        assert grows == sorted(set(grows))
    assert whole[3] == pytest.approx(5 * weights + activations[3], abs=0.2)
    assert "largest activation at 64: " in out


@pytest.mark.slow
def test_a_config_is_planned_as_it_says_and_options_change_it(plan, config):
    out = plan(config, config)
    assert "base: 8 x 8" in out
    assert "training in bf16, adamw, 7 text tokens, levels 0 checkpointed" in out
    assert cells(out, "3")
    size, largest = re.search(r"EMA of all 2: (.*) MB; .* at most (.*) MB", out).groups()
    assert float(size) == pytest.approx(2 * float(largest), abs=0.11)
    changed = plan(
        config, "--microbatch", "5", "--precision", "fp32", "--checkpoint-levels", "all",
        "--optimizer", "adafactor", "--tokens", "9",
    )  # fmt: skip
    assert "training in fp32, adafactor, 9 text tokens, levels 0 checkpointed" in changed
    assert cells(changed, "5")


@pytest.mark.slow
def test_a_card_gets_the_largest_microbatch_of_each_way_and_a_suggestion(plan, config):
    out = plan(config, "--card", "1")
    assert "on a card of 1 GB (429.5 MB of 1.07 GB for tensors):" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("bf16  ", "fp32  "))]
    assert len(rows) == 8
    assert len({tuple(row[:-1]) for row in rows}) == 8
    suggested = re.search(r"suggested: precision: bf16, .* \[\], microbatch: up to (\d+)", out)
    assert suggested[1] == next(row[-1] for row in rows if row[:3] == ["bf16", "none", "adamw"])


@pytest.mark.slow
def test_a_card_that_is_too_small_gets_the_smaller_preset_that_fits(plan, tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text(MEMBERS.replace("widths: [16]", "widths: [1024]"))
    out = plan(str(path), "--card", "1", "--microbatch", "1")
    assert "does not fit; base8-tiny does, with a microbatch of" in out


@pytest.mark.parametrize("name", CASCADES)
def test_printed_yaml_is_a_members_section_that_loads_as_the_preset(plan, name):
    cascade = CASCADES[name]
    out = plan(name, "--yaml")
    tree = {"name": "x", "out": "y", "text": {"encoder": cascade.encoder}, **parse_yaml(out, "out")}
    assert build(ProjectConfig, tree).members == cascade.members
    assert f"# text: {{encoder: {cascade.encoder}}}" in out
    assert out == plan(*cascade.presets, "--yaml")


def test_printed_yaml_goes_into_a_file(plan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\nout: y\n{plan('photos-tiny', '--yaml')}")
    assert load_config(ProjectConfig, str(path)).members == CASCADES["photos-tiny"].members


def test_what_is_trained_on_crops_says_so_beside_the_members(plan):
    assert "# train.sr2.crop_px: 256\n" in plan("imagen-m", "--yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base46"], "error: there is no preset `base46`\n\nhint: did you mean `base64`?"),
        (["imagen-x"], "hint: did you mean `imagen-s`?"),
        (["nowhere.yaml"], "config file `nowhere.yaml` does not exist"),
        (["base64", "--microbatch", "-3"], "error: --microbatch -3 is less than 1"),
        (["base64", "--tokens", "0"], "error: --tokens 0 is less than 1"),
        (["base64", "--card", "0"], "error: a card of 0 GB is not in [1, 1024]"),
        (["base64", "--checkpoint-levels", "x"], "--checkpoint-levels x is neither `all` nor"),
        (["base8-tiny", "--checkpoint-levels", "2"], "checkpoint level 2 is not in [0, 2)"),
        (["base64", "--precision", "fp16"], "invalid choice: 'fp16'"),
        (["--card", "24"], "--card is of no use without a preset, cascade or config"),
        (["base64", "sr256-s", "--yaml"], "are for different text encoders"),
        (["sr256", "--yaml"], "member base has network.kind 'efficient'"),
        (["sr256", "base64", "--yaml"], "member sizes [256, 64] do not grow"),
    ],
)
def test_what_cannot_be_planned_is_refused(plan, words, message):
    assert message in plan(*words)


def test_a_config_has_its_members_already(plan, config):
    assert "--yaml is for presets" in plan(config, "--yaml")


def test_a_wrong_train_key_of_a_config_is_refused_with_its_place(plan, config, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text((MEMBERS + TRAIN).replace("precision: bf16", "precision: fp8"))
    assert "wrong.yaml: train.base: `precision`" in plan(str(path))


def test_help_teaches_by_examples_that_parse(plan):
    text = plan("--help")
    examples = text.split("examples\n")[1].split("\n\n")[0].splitlines()
    assert len(examples) >= 5
    for example in examples:
        program, *words = shlex.split(example.partition("  ")[2].partition("   ")[0])
        assert (program, words[0]) == ("imagen", "plan")
        cli.parser().parse_args(words)


def test_help_answers_without_torch():
    code = (
        "import sys; from imagen import cli\n"
        "try: cli.main(['plan', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
