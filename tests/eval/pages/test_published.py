"""The publish stage: how far it is, and what its place is brought to."""

import dataclasses
import shutil

import pytest

import imagen
from eval import history, inputs
from eval.commands import publish as command
from eval.config import EvalConfig, PublishConfig
from eval.published import state
from imagen import config as configs
from imagen import storage
from imagen.errors import ConfigError, StorageError


@pytest.fixture
def project(tiny, run, tmp_path):
    """The project of `run` with a `publish` section, in a folder of the test's own."""
    shutil.copytree(run.out, tmp_path / "out")
    config = tiny.make_config(tmp_path / "out")
    return dataclasses.replace(config, publish=PublishConfig(weights_license="mit"))


def call(config, *words):
    path = f"{config.out}/../config.yaml"
    storage.put(path, configs.dump_yaml(config).encode())
    command.run(command.parser().parse_args([path, *words]))


def told(config):
    found = state(config)
    assert found.stage == "publish"
    assert found.outputs == (config.published,)
    return found.status, found.detail


def reset(config, **section):
    return dataclasses.replace(config, publish=dataclasses.replace(config.publish, **section))


def files(folder):
    return {name: storage.version(f"{folder}/{name}") for name in storage.listdir(folder)[:]
            if "." in name or name == "SHA256SUMS"}  # fmt: skip


def test_the_stage_publishes_below_out_and_is_done_then(project, capsys):
    assert told(project) == ("missing", f"nothing in {project.published}")
    call(project)
    assert capsys.readouterr().out.endswith(f"{project.out}/published\n")
    status, detail = told(project)
    newest = history.load(project).newest
    assert status == "done"
    assert newest.name in detail
    cascade = imagen.Cascade.load(project.published)
    assert cascade.fingerprint == newest.body["cascade"]
    assert (
        "| licence of the weights | mit |" in storage.get(f"{project.published}/README.md").decode()
    )


def test_publishing_a_stage_that_is_done_writes_nothing(project, capsys):
    call(project)
    before = files(project.published)
    call(project)
    assert "nothing: all of it was there" in capsys.readouterr().out
    assert files(project.published) == before


def test_the_place_of_the_config_may_be_a_store(project):
    config = reset(project, to="memory://published-stage")
    assert told(config)[0] == "missing"
    call(config)
    assert told(config)[0] == "done"
    assert not storage.exists(f"{project.out}/published/cascade.json")


def test_an_older_cascade_of_the_project_is_stale_and_gives_way(project):
    older, *_ = history.load(project).evaluations
    call(reset(project, evaluation=older.name))
    status, detail = told(project)
    assert status == "stale"
    assert older.body["cascade"] in detail
    call(project)
    assert told(project)[0] == "done"


def test_what_another_run_of_the_same_name_published_is_refused(project, tiny, tmp_path):
    place = f"{tmp_path}/place"
    shutil.copytree(project.out, tmp_path / "other" / "out")
    other = dataclasses.replace(tiny.make_config(tmp_path / "other/out"), publish=project.publish)
    older, *_ = history.load(project).evaluations
    call(reset(project, to=place, evaluation=older.name))
    shutil.rmtree(f"{other.evals}/{older.name}")  # a run that never had that cascade
    assert other.name == project.name
    before = files(place)
    with pytest.raises(StorageError, match=r"holds another cascade(.|\n)*--overwrite"):
        call(reset(other, to=place))
    assert files(place) == before
    call(reset(other, to=place), "--overwrite")
    assert told(reset(other, to=place))[0] == "done"


def test_what_a_person_chose_the_snapshots_of_may_be_anothers_and_is_refused(project, leave):
    older, *_ = history.load(project).evaluations
    call(reset(project, evaluation=older.name))
    leave.alter(older.folder, named=True)
    with pytest.raises(StorageError, match="holds another cascade"):
        call(project)


def test_the_newest_that_has_seen_fewer_images_is_refused_but_not_one_that_is_named(project, leave):
    call(project)
    for member in project.members:  # trained anew: the snapshots of the longer training are gone
        for count in (1280, 1920):
            shutil.rmtree(f"{project.run_dir(member)}/snapshots/{count:012d}")
    oldest, *_ = history.load(project).evaluations
    leave.alter(oldest.folder, fingerprint=inputs.gather(project).fingerprint)
    newest = history.load(project).newest
    assert newest.at == 640
    with pytest.raises(
        StorageError, match=r"1,920 images, the newest .* of 640(.|\n)*--evaluation"
    ):
        call(project)
    call(reset(project, evaluation=newest.name))
    assert told(project)[0] == "done"


def test_a_destination_on_the_command_line_never_gives_way_by_itself(project, tmp_path):
    older, *_ = history.load(project).evaluations
    call(reset(project, evaluation=older.name), f"{tmp_path}/there")
    with pytest.raises(StorageError, match="holds another cascade"):
        call(project, f"{tmp_path}/there")
    call(project, "--overwrite", f"{tmp_path}/there")  # options may stand before it
    assert not storage.exists(f"{project.published}/cascade.json")


def test_another_licence_makes_the_card_stale_but_not_the_evaluation(project):
    call(project)
    config = reset(project, data_license="cc-by-4.0")
    assert inputs.gather(config).fingerprint == inputs.gather(project).fingerprint
    status, detail = told(config)
    assert status == "stale"
    assert "README.md" in detail
    call(config)
    assert told(config)[0] == "done"


def test_the_best_evaluation_is_published_by_the_figure_of_the_config(project):
    config = reset(project, evaluation="best", by="digit_accuracy")
    call(config)
    assert told(config)[0] == "done"
    bad = reset(project, evaluation="best", by="digit_acuracy")
    assert told(bad)[0] == "stale"  # something is published, and nothing says what should be
    assert "cannot say which is best" in told(bad)[1]


def test_a_file_that_is_gone_is_work_left(project):
    call(project)
    (member,) = [n for n in storage.listdir(project.published) if n.startswith("sr1-")]
    folder = f"{project.published}/{member}"
    (weights,) = [n for n in storage.listdir(folder) if n.startswith("weights")]
    storage.delete(f"{folder}/{weights}")
    assert told(project) == ("partial", f"files of sr1 are missing in {project.published}")
    call(project)
    assert told(project)[0] == "done"


def test_a_damaged_manifest_is_work_left_and_a_killed_publish_too(project):
    call(project)
    storage.put(f"{project.published}/cascade.json", b"{")
    assert told(project)[0] == "partial"
    storage.delete(f"{project.published}/cascade.json")
    assert told(project) == ("partial", "begun")
    call(project)
    assert told(project)[0] == "done"


def test_without_an_evaluation_there_is_nothing_to_publish_yet(tiny, tmp_path):
    config = dataclasses.replace(tiny.make_config(tmp_path), publish=PublishConfig())
    status, detail = told(config)
    assert status == "missing"
    assert "no finished evaluation" in detail


def test_a_setting_in_the_place_of_the_destination_is_a_setting(project):
    call(project, "publish.weights_license=apache-2.0", "--dry-run")
    assert told(project)[0] == "missing"
    call(project, "publish.weights_license=apache-2.0")
    assert b"apache-2.0" in storage.get(f"{project.published}/README.md")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"by": "digit_accuracy"}, "says which evaluation is best, evaluation is newest"),
        ({"evaluation": ""}, "say newest, best, or the name of one"),
        ({"layout": "tarball"}, "`publish.layout`"),
        ({"weights_licence": "mit"}, "did you mean `weights_license`"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(tiny, section, message):
    tree = {**tiny.TREE, "out": "memory://x", "publish": section}
    with pytest.raises(ConfigError, match=message):
        configs.build(EvalConfig, tree)
