"""What may change while a run goes on: freely, when asked for by name, or never."""

from pathlib import Path

import pytest

from imagen import config as configs
from imagen.errors import CheckpointError, ConfigError
from train import rundir
from train.commands import fit
from train.config import TrainConfig

FOUND = {
    "seed": 3,
    "global_batch": 8,
    "lanes": 2,
    "window": 16,
    "data fingerprint": "d1",
    "encoder fingerprint": "e1",
    "size of the member before": None,
    "size": 8,
    "network": {"widths": [16], "text_dim": 16},
    "diffusion": {"prediction": "v"},
    "order and decoding": [1, 1],
    "prepared images": None,
    "initial weights": None,
}


def test_the_same_identity_has_no_differences():
    assert rundir.check_identity("run", FOUND, dict(FOUND)) == []
    assert rundir.check_identity("run", FOUND, dict(FOUND), ["seed", "lanes"]) == []


@pytest.mark.parametrize("name", rundir.ACCEPTABLE)
def test_a_change_is_refused_with_its_flag_and_goes_with_it(name: str):
    wanted = {**FOUND, name: {"prediction": "x0"} if name == "diffusion" else 4}
    flag = name.replace(" ", "-")
    with pytest.raises(CheckpointError, match=rf"`run` cannot be continued.*{name}.*: was") as err:
        rundir.check_identity("run", FOUND, wanted)
    assert f"to go on all the same, add --accept {flag}" in str(err.value)
    (line,) = rundir.check_identity("run", FOUND, wanted, [flag])
    assert line.startswith(name)


NEVER = {
    "network": {"widths": [32], "text_dim": 16},
    "size": 16,
    "size of the member before": 4,
    "initial weights": "00ff",
}


@pytest.mark.parametrize("name", NEVER)
def test_what_the_weights_are_of_is_refused_without_a_way_around(name: str):
    with pytest.raises(CheckpointError, match=f"cannot be continued.*{name}.*: was") as err:
        rundir.check_identity("run", FOUND, {**FOUND, name: NEVER[name]})
    assert "--accept" not in str(err.value)
    with pytest.raises(ConfigError, match=f"--accept {name}: this is nothing that a run under way"):
        rundir.accepted([name])


def test_what_was_not_accepted_is_still_refused_and_told_alone():
    wanted = {**FOUND, "lanes": 4, "seed": 5}
    with pytest.raises(CheckpointError, match="seed: was 3, is 5") as err:
        rundir.check_identity("run", FOUND, wanted, ["lanes"])
    assert "lanes: was" not in str(err.value)
    assert rundir.check_identity("run", FOUND, wanted, ["lanes", "seed"]) == [
        "seed: was 3, is 5",
        "lanes: was 2, is 4",
    ]


def test_a_misspelt_name_is_refused_with_the_right_one():
    with pytest.raises(ConfigError, match="did you mean data-fingerprint"):
        rundir.accepted(["data-fingerprnt"])
    with pytest.raises(ConfigError, match="it is seed, global_batch, lanes, window, data-finger"):
        rundir.accepted(["xyz"])


@pytest.mark.parametrize("spelling", ["data fingerprint", "data-fingerprint", "Data_Fingerprint"])
def test_a_name_is_known_in_any_spelling(spelling: str):
    assert rundir.accepted([spelling]) == {"data fingerprint"}


def test_a_run_goes_on_at_a_whole_global_batch():
    assert rundir.continued(96, 8) == 96
    assert rundir.continued(96, 20) == 100
    assert rundir.continued(0, 20) == 0


def test_every_key_that_is_free_is_a_key_of_the_config():
    keys = set(TrainConfig.__dataclass_fields__)
    assert set(rundir.FREE) <= keys
    assert {"lr", "optimizer", "ema_sigma_rel", "flip", "images"}.isdisjoint(rundir.FREE)


def test_an_identity_of_a_version_without_initial_weights_is_of_random_ones():
    stored = {key: value for key, value in FOUND.items() if key != "initial weights"}
    assert rundir.known_identity(stored)["initial weights"] is None


def test_the_command_refuses_a_misspelt_name_before_anything_else(helpers, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(configs.dump_yaml(helpers.make_config(str(tmp_path))))
    words = [f"{tmp_path}/c.yaml", "member=base", "--accept", "lanes", "--accept", "windw"]
    with pytest.raises(ConfigError, match=r"--accept windw: .*\s+hint: did you mean window"):
        fit.run(fit.parser().parse_args(words))


def test_the_help_names_everything_that_can_be_accepted():
    told = fit.parser().format_help()
    assert [name for name in rundir.ACCEPTABLE if name.replace(" ", "-") not in told] == []
