import dataclasses
from pathlib import Path

import pytest

from imagen.errors import ConfigError
from pipeline import config as configs
from pipeline.stages import Stage, Training, line, reasons, select, shares, waves
from runtime.state import StageState

DIGITS = "pipeline/configs/digits.yaml"


def stage(name, after=(), status="missing", member=None):
    state = StageState(stage=name, status=status, detail="details")
    training = Training(member=member, log="log.jsonl", images=1) if member else None
    return Stage(name=name, arguments=(), after=after, state=lambda: state, training=training)


def names(groups):
    return [[stage.name for stage in group] for group in groups]


def test_the_line_of_digits_has_both_trainings_side_by_side_and_ends_with_publish():
    groups = waves(line(configs.load(DIGITS, ["out=memory://stages-test"])))
    assert names(groups) == [
        ["import"],
        ["preencode"],
        ["train base", "train sr1"],
        ["eval"],
        ["publish"],
    ]


def test_images_are_prepared_between_encoding_and_training_when_the_config_says_so():
    made = line(configs.load(DIGITS, ["out=memory://stages-test", "data.prepare=true"]))
    wanted = [["import"], ["preencode"], ["prepare"], ["train base", "train sr1"], ["eval"]]
    assert names(waves(made))[:-1] == wanted
    assert made[2].arguments[:3] == ("-m", "preencode", "prepare")
    assert (made[2].state().stage, made[2].state().status) == ("prepare", "missing")


def test_each_stage_is_started_with_the_same_config_and_overrides():
    for made in line(configs.load(DIGITS, ["out=memory://stages-test", "seed=7"])):
        assert made.arguments[0] == "-m"
        assert made.arguments[-2:] == ("out=memory://stages-test", "seed=7")
        assert DIGITS in made.arguments


def test_tars_that_are_there_already_need_no_import():
    config = configs.load(DIGITS, ["out=memory://t", "source=null", "data.tars=memory://tars"])
    made = line(config)
    assert made[0].name == "preencode"
    assert made[0].after == ()


def test_nothing_is_done_in_an_empty_folder(tmp_path):
    made = line(configs.load(DIGITS, [f"out={tmp_path}/none"]))
    assert {stage.state().status for stage in made} == {"missing"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("source.shrads=3", "source.shrads"),
        ("preencode.actros=3", "preencode.actros"),
        ("train.base.lrr=3", "train.base.lrr"),
        ("eval.cuont=3", "eval.cuont"),
        ("publish.licence=mit", "publish.licence"),
    ],
)
def test_a_typo_in_the_section_of_any_stage_is_refused(override, key):
    with pytest.raises(ConfigError, match=f"unknown key `{key}`"):
        configs.load(DIGITS, [override])


def test_a_member_without_training_is_refused():
    with pytest.raises(ConfigError, match=r"the config has no section `train\.base`"):
        configs.load(DIGITS, ["train={}"])


def test_stages_that_need_nothing_of_each_other_share_a_wave():
    stages = [stage("a"), stage("b", ("a",)), stage("c", ("a",)), stage("d", ("c", "b"))]
    assert names(waves(stages)) == [["a"], ["b", "c"], ["d"]]


def test_stages_that_wait_for_each_other_are_a_bug():
    with pytest.raises(AssertionError, match="wait for each other"):
        waves([stage("a", ("b",)), stage("b", ("a",))])


def test_why_a_stage_runs_is_its_state_or_what_runs_before_it():
    stages = [
        stage("a", status="done"),
        stage("b", ("a",), status="partial"),
        stage("c", ("b",), status="done"),
        stage("d", ("a",), status="done"),
    ]
    why = reasons(stages, {made.name: made.state() for made in stages})
    assert why == {
        "a": None,
        "b": "partial: details",
        "c": "done, but looked at again after b",
        "d": None,
    }


@pytest.mark.parametrize(
    ("cores", "each"), [(1, {"base": 1, "sr1": 1}), (2, {"base": 1, "sr1": 1}), (9, {"base": 4})]
)
def test_cores_are_split_evenly_and_each_training_has_one_at_least(cores, each):
    stages = [stage("import"), stage("x", member="base"), stage("y", member="sr1")]
    assert shares(stages, cores).items() >= each.items()


def test_the_only_training_left_has_all_cores_and_no_training_needs_none():
    assert shares([stage("x", member="sr1")], 8) == {"sr1": 8}
    assert shares([stage("import")], 8) == {}


def test_a_stage_says_nothing_that_can_change_under_it():
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage("a").name = "b"


@pytest.mark.parametrize(
    "path", sorted(Path("pipeline/configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_committed_config_is_one_of_all_stages(path):
    config = configs.load(str(path))
    found = [stage.name for stage in line(config)]
    assert found[-2:] == ["eval", "publish"]
    assert {f"train {member}" for member in config.train.members} <= set(found)


LINE = [
    stage("import"),
    stage("preencode", ("import",)),
    stage("train base", ("preencode",), member="base"),
    stage("train sr1", ("preencode",), member="sr1"),
    stage("eval", ("train base", "train sr1")),
    stage("publish", ("eval",)),
]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [["import"], ["preencode"], ["train base", "train sr1"], ["eval"], ["publish"]]),
        ({"only": "eval"}, [["eval"]]),
        ({"only": "train-base"}, [["train base"]]),
        ({"only": "train base"}, [["train base"]]),
        ({"only": "train"}, [["train base", "train sr1"]]),
        ({"first": "train-sr1"}, [["train sr1"], ["eval"], ["publish"]]),
        ({"first": "train"}, [["train base", "train sr1"], ["eval"], ["publish"]]),
        ({"last": "train-base"}, [["import"], ["preencode"], ["train base"]]),
        ({"first": "preencode", "last": "train"}, [["preencode"], ["train base", "train sr1"]]),
    ],
)
def test_part_of_the_line_is_chosen_by_what_needs_what(options, wanted):
    assert names(waves(select(LINE, **options))) == wanted


def test_a_stage_that_is_left_out_is_not_waited_for():
    assert [made.after for made in select(LINE, only="eval")] == [()]
    assert select(LINE, first="train-base")[1].after == ("train base",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "evl"}, r"no stage 'evl'(.|\n)*did you mean eval\?(.|\n)*train-base, train-sr1"),
        ({"first": "pre-encode"}, r"did you mean preencode\?"),
        ({"last": "tarin"}, r"did you mean train\?"),
        ({"only": "quux"}, r"hint: the stages are: import"),
        ({"only": "eval", "last": "eval"}, r"--only goes without --from and --until"),
        ({"first": "eval", "last": "import"}, r"no stage needs eval and is needed by import"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_with_what_there_is(options, message):
    with pytest.raises(ConfigError, match=message):
        select(LINE, **options)


def test_the_line_publishes_only_when_the_config_has_the_section():
    with_section = line(configs.load(DIGITS, ["out=memory://t"]))
    assert [made.name for made in with_section][-2:] == ["eval", "publish"]
    assert with_section[-1].arguments == ("-m", "eval", "publish", DIGITS, "out=memory://t")
    without = line(configs.load(DIGITS, ["out=memory://t", "publish=null"]))
    assert without[-1].name == "eval"
