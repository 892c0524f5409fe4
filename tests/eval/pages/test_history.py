"""Which evaluation is the newest, and which are points of one curve."""

import shutil

import pytest

from eval import compare, history, inputs
from eval.publish import choose
from eval.report.page import page
from imagen import storage
from imagen.errors import ShardError, StorageError


@pytest.fixture
def project(tiny, tmp_path):
    """A config, with snapshots of both members at 640 and 1,280 images."""
    config = tiny.make_config(tmp_path)
    for n in (640, 1280):
        for member in config.members:
            tiny.write_snapshot(config, member, n, seed=n)
    return config


def both(n):
    return {"base": n, "sr1": n}


def other(tiny, config, **section):
    return tiny.make_config(config.out, **section)


@pytest.mark.parametrize("later", [0, 1])
def test_of_equal_images_the_one_that_finished_last_is_the_newest(tiny, project, leave, later):
    ways = [project, other(tiny, project, sweeps={"guidance": [1.0, 2.0]})]
    folders = [leave.finish(way, both(1280)) for way in ways]
    for i, folder in enumerate(folders):
        leave.alter(folder, time=1000.0 + (i == later))
    found = history.load(project)
    assert found.newest.folder == folders[later]
    assert [one.folder for one in found.comparable] == [folders[later]]  # one point, not two
    assert [one.folder for one in found.others] == [folders[1 - later]]
    assert compare.find(project.out).folder == folders[later]
    assert "sweeps: " in page(found)


def test_the_evaluation_of_the_newest_snapshots_by_todays_section_comes_first(tiny, project, leave):
    before, now = leave.finish(project, both(1280)), other(tiny, project, sweeps={"steps": [1, 2]})
    mine = leave.finish(now, both(1280))
    leave.alter(mine, time=1000.0, fingerprint=inputs.gather(now).fingerprint)
    leave.alter(before, time=2000.0)
    assert history.load(now).newest.folder == mine
    assert history.load(project).newest.folder == before
    shutil.rmtree(f"{project.run_dir('sr1')}/snapshots")
    assert history.load(now).newest.folder == before  # none is of what is there: the last one


def test_more_members_count_before_more_images_and_a_curve_is_of_the_same_members(project, leave):
    for n in (640, 1280):
        leave.finish(project, {"base": n}, 0.1)
    whole = leave.finish(project, both(640), 0.9)
    found = history.load(project)
    assert found.newest.folder == whole
    assert [one.members for one in found.comparable] == [["base", "sr1"]]
    assert [one.members for one in found.others] == [["base"], ["base"]]
    assert "members: base" in page(found)


def test_a_base_alone_has_curves_of_its_own(project, leave):
    for n in (640, 1280):
        leave.finish(project, {"base": n}, 0.1)
    assert [one.at for one in history.load(project).comparable] == [640, 1280]


def test_snapshots_that_a_person_chose_are_listed_apart_and_published_by_name_only(project, leave):
    usual, chosen = leave.finish(project, both(640), 0.2), leave.finish(project, both(1280), 0.9)
    leave.alter(chosen, named=True, time=1000.0)
    found = history.load(project)
    assert found.newest.folder == usual
    assert [one.folder for one in found.comparable] == [usual]
    assert "a person chose its snapshots" in page(found)
    assert choose(found, "newest").folder == choose(found, "best").folder == usual
    assert choose(found, storage.name(chosen)).folder == chosen
    assert compare.find(project.out).folder == usual
    shutil.rmtree(usual)
    with pytest.raises(StorageError, match="no finished evaluation"):
        choose(history.load(project), "newest")
    assert history.load(project).newest.folder == chosen  # better than no page


def test_what_a_person_chose_counts_once_it_is_what_is_evaluated_anyway(project, leave):
    folder = leave.finish(project, both(1280))
    leave.alter(folder, named=True, fingerprint=inputs.gather(project).fingerprint)
    assert choose(history.load(project), "newest").folder == folder


def test_nothing_is_published_by_rank_while_an_evaluation_is_damaged(project, leave):
    usual, broken = leave.finish(project, both(640)), leave.finish(project, both(1280))
    leave.damage(broken, "metrics.json")
    found = history.load(project)
    for which in ("newest", "best", storage.name(broken)):
        with pytest.raises(ShardError, match="its manifest says"):
            choose(found, which)
    assert choose(found, storage.name(usual)).folder == usual


def test_a_copied_evaluation_is_known_by_its_images_not_by_its_name(project, leave, tmp_path):
    shutil.copytree(leave.finish(project, {"base": 1280, "sr1": 640}), tmp_path / "mine")
    assert compare.find(f"{tmp_path}/mine").at == 1280
