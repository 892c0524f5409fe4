from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pytest

from imagen import storage
from imagen.config import build, dump_yaml, load_config, parse_yaml, read_tree, to_tree
from imagen.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    width: int = 8
    rate: float = 1e-3

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"width {self.width} is less than 1", "use 8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    leaf: Leaf = field(default_factory=Leaf)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    many: tuple[Leaf, ...] = ()
    maybe: Leaf | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    name: str
    branch: Branch = field(default_factory=Branch)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"

    def write(text):
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("tree", "dotted"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"branch": {"laef": {}}}, "branch.laef"),
        ({"branch": {"leaf": {"widht": 1}}}, "branch.leaf.widht"),
    ],
)
def test_a_typo_is_refused_at_every_depth_with_the_key_that_was_meant(tree, dotted):
    meant = {"nmae": "name", "laef": "leaf", "widht": "width"}[dotted.rpartition(".")[2]]
    with pytest.raises(ConfigError, match=f"x.yaml: unknown key `{dotted}`") as caught:
        build(Root, {"name": "x", **tree}, where="x.yaml")
    assert caught.value.hint == f"did you mean `{meant}`?"


@pytest.mark.parametrize(
    "tree",
    [
        {"leaves": {"a": {"widht": 1}}},
        {"many": [{"widht": 1}]},
        {"maybe": {"widht": 1}},
    ],
)
def test_a_typo_is_refused_inside_maps_lists_and_optional_sections(tree):
    with pytest.raises(ConfigError, match=r"unknown key `branch.*widht`") as caught:
        build(Root, {"name": "x", "branch": tree})
    assert caught.value.hint == "did you mean `width`?"


def test_a_key_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match="unknown key `zzz`") as caught:
        build(Root, {"name": "x", "zzz": 1})
    assert caught.value.hint is None


def test_a_section_of_another_stage_is_left_to_that_stage():
    assert build(Root, {"name": "x", "train": {"anything": 1}}).name == "x"


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"c\.yaml: key `name` is missing"):
        build(Root, {}, where="c.yaml")


def test_a_value_of_the_wrong_type_is_named_and_shown():
    with pytest.raises(ConfigError, match=r"`branch\.leaf\.width`: .*integer.*got 'wide'"):
        build(Root, {"name": "x", "branch": {"leaf": {"width": "wide"}}})


def test_a_rule_between_fields_keeps_its_reason_and_its_hint():
    with pytest.raises(ConfigError, match=r"`branch\.leaf`: width 0 is less than 1") as caught:
        build(Root, {"name": "x", "branch": {"leaf": {"width": 0}}})
    assert caught.value.hint == "use 8"


def test_all_errors_of_a_file_are_told_together():
    with pytest.raises(ConfigError) as caught:
        build(Root, {"nmae": "x", "branch": {"leaf": {"width": "wide"}}})
    assert "`name` is missing" in caught.value.message
    assert "unknown key `nmae`" in caught.value.message
    assert "`branch.leaf.width`" in caught.value.message


def test_a_key_given_twice_is_refused_with_both_lines(file):
    path = file("name: x\nbranch:\n  leaf: {width: 1}\n  leaf: {width: 2}\n")
    with pytest.raises(ConfigError, match="key `leaf` is given twice, on lines 3 and 4"):
        load_config(Root, path)


def test_merge_keys_still_work_beside_the_check_for_keys_given_twice():
    text = "base: &base {width: 1}\nmine:\n  <<: *base\n  rate: 2.0\n"
    assert parse_yaml(text, "x")["mine"] == {"width": 1, "rate": 2.0}


def test_a_missing_file_is_named_with_an_example(tmp_path):
    with pytest.raises(ConfigError, match=r"config file `.*/none\.yaml` does not exist") as caught:
        load_config(Root, str(tmp_path / "none.yaml"))
    assert "digits.yaml" in caught.value.hint


def test_broken_yaml_is_named_with_its_line(file):
    with pytest.raises(ConfigError, match=r"(?s)config\.yaml: not valid YAML.*line 2"):
        load_config(Root, file("name: x\nbranch: [1, 2\n"))


def test_a_key_that_cannot_be_a_key_is_refused_with_its_line():
    with pytest.raises(ConfigError, match=r"(?s)x: not valid YAML: .*unhashable key.*line 1"):
        parse_yaml("? [a, b]\n: 1\n", "x")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"config\.yaml: not a text file in UTF-8"):
        load_config(Root, str(tmp_path / "config.yaml"))


def test_a_file_that_is_no_mapping_is_refused(file):
    with pytest.raises(ConfigError, match="a config is a mapping, not a list"):
        load_config(Root, file("- name\n"))


def test_overrides_come_on_top_of_the_file_and_are_yaml(file):
    path = file("name: x\nbranch: {leaf: {width: 1}}\n")
    config = load_config(Root, path, ["branch.leaf.rate=3e-4", "branch.many=[{width: 4}]"])
    assert config.branch.leaf == Leaf(width=1, rate=3e-4)
    assert config.branch.many == (Leaf(width=4),)


def test_the_last_of_two_overrides_wins(file):
    assert load_config(Root, file("name: x\n"), ["name=y", "name=z"]).name == "z"


@pytest.mark.parametrize("override", ["name", "=x", "--name"])
def test_an_override_without_key_or_value_is_refused(file, override):
    with pytest.raises(ConfigError, match=f"override `{override}` is not of the form"):
        read_tree(file("name: x\n"), [override])


def test_an_override_below_a_plain_value_is_refused(file):
    with pytest.raises(ConfigError, match=r"override `name\.first=y`: `name` is a value"):
        read_tree(file("name: x\n"), ["name.first=y"])


def test_an_override_with_a_typo_is_refused_like_the_file(file):
    with pytest.raises(ConfigError, match=r"unknown key `branch.laef`"):
        load_config(Root, file("name: x\n"), ["branch.laef.width=2"])


def test_an_override_that_is_no_yaml_is_named(file):
    with pytest.raises(ConfigError, match=r"override `name=\[`: not valid YAML"):
        read_tree(file("name: x\n"), ["name=["])


def test_a_section_that_is_empty_in_the_file_takes_overrides(file):
    config = load_config(Root, file("name: x\nbranch:\n"), ["branch.leaf.width=3"])
    assert config.branch.leaf.width == 3


def test_the_dumped_config_is_a_valid_input_and_gives_the_same_config():
    config = Root(name="x: y", branch=Branch(leaves={"a": Leaf(width=3)}, many=(Leaf(), Leaf())))
    assert build(Root, parse_yaml(dump_yaml(config), "dump")) == config


def test_the_tree_has_plain_values_only():
    assert to_tree({"path": PurePosixPath("a/b"), "pair": (1, Leaf())}) == {
        "path": "a/b",
        "pair": [1, {"width": 8, "rate": 1e-3}],
    }


def test_a_config_is_read_from_any_url():
    storage.put("memory://configs/c.yaml", b"name: remote\n")
    assert load_config(Root, "memory://configs/c.yaml").name == "remote"
