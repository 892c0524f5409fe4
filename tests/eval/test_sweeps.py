import pytest

from eval import sweeps
from eval.config import SweepsConfig
from eval.inputs import of_members
from imagen.errors import ConfigError

SWEEPS = {"guidance": [0, 2.5], "steps": [1, 3], "samplers": ["ddim"], "aug_level": [0.3],
          "count": 12}  # fmt: skip


def resolved(config, point, member):
    return point.options.resolve(member, config.members[member].sampling)


def test_each_value_changes_one_setting_and_nothing_else(tiny, tmp_path):
    config = tiny.make_config(tmp_path, sweeps=SWEEPS, guidance_scale=1.5)
    found = {(p.sweep, p.label): p for p in sweeps.points(config)}
    assert list(found) == [
        ("guidance", "0"), ("guidance", "2.5"), ("steps", "1"), ("steps", "3"),
        ("samplers", "ddim"), ("aug_level", "0.3"),
    ]  # fmt: skip
    strong = found["guidance", "2.5"]
    assert resolved(config, strong, "base").guidance_scale == 2.5
    assert resolved(config, strong, "sr1").guidance_scale == 1.5
    assert resolved(config, found["steps", "3"], "sr1").steps == 3
    assert resolved(config, found["samplers", "ddim"], "base").sampler == "ddim"
    assert resolved(config, found["aug_level", "0.3"], "sr1").aug_level == 0.3
    assert len(sweeps.items(config)) == 12


def test_samples_of_different_values_never_share_a_file(tiny, tmp_path):
    config = tiny.make_config(tmp_path, sweeps=SWEEPS)
    paths = [
        chunk.path
        for point in sweeps.points(config)
        for chunk in sweeps.chunks(config, point, "folder", "cascade")
    ]
    assert len(set(paths)) == len(paths) == 12


def test_a_base_alone_is_not_swept_over_levels_of_its_lowres(project, tiny):
    config = tiny.make_config(project.out, sweeps=SWEEPS)

    class Base:
        snapshots = {"base": "folder"}  # noqa: RUF012

    alone = of_members(config, Base)
    assert {p.sweep for p in sweeps.points(alone)} == {"guidance", "steps", "samplers"}


def test_values_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="has a value twice"):
        SweepsConfig(steps=(4, 4))
    with pytest.raises(ConfigError, match="no number"):
        SweepsConfig(guidance=(float("nan"),))
    with pytest.raises(ConfigError, match="samples nothing"):
        SweepsConfig(count=0)
