from dataclasses import replace

import pytest

from eval import inputs, stage
from imagen import storage
from imagen.data.prepared import Prepared
from imagen.errors import CheckpointError, ConfigError


def test_newest_snapshot_of_each_member_is_taken(project, tiny):
    newer = tiny.write_snapshot(project, "base", images_seen=1280)
    found = inputs.gather(project)
    assert found.snapshots["base"] == newer
    assert found.images_seen == {"base": 1280, "sr1": 640}


def test_an_untrained_member_is_named_with_the_command_that_trains_it(project):
    storage.delete(f"{project.run_dir('sr1')}/snapshots/{640:012d}/snapshot.json")
    with pytest.raises(CheckpointError, match="member sr1 has no snapshot") as caught:
        inputs.gather(project)
    assert caught.value.hint == "run `python -m train CONFIG member=sr1`"
    assert stage.state(project).status == "missing"


def test_members_of_different_data_are_refused(project, tiny):
    tiny.write_snapshot(project, "sr1", data_fingerprint="e" * 16)
    message = "different values of data_fingerprint: base [0-9a-f]+, sr1 e+"
    with pytest.raises(CheckpointError, match=message):
        inputs.gather(project)


def test_a_member_without_text_is_of_no_encoder(project, tiny):
    base = project.members["base"]
    network = replace(base.network, text_dim=0, cross_attention=(False,) * len(base.network.widths))
    members = {**project.members, "base": replace(base, network=network)}
    mixed = replace(project, members=members)
    tiny.write_snapshot(mixed, "base", images_seen=1280, encoder_fingerprint=None)
    assert inputs.gather(mixed).images_seen["base"] == 1280
    tiny.write_snapshot(project, "base", images_seen=1920, encoder_fingerprint=None)
    with pytest.raises(CheckpointError, match="different values of encoder_fingerprint: base None"):
        inputs.gather(project)


def test_members_that_were_trained_on_another_split_are_refused(project, tiny):
    for member in project.members:
        tiny.write_snapshot(project, member, data_fingerprint="e" * 16)
    with pytest.raises(
        CheckpointError, match=r"base was trained on data e+, the prepared data set"
    ):
        inputs.check_data(inputs.gather(project), Prepared.open(project.index))


def test_fingerprint_covers_weights_section_and_prompts(project, tiny, tmp_path):
    first = inputs.gather(project).fingerprint
    assert inputs.gather(project).fingerprint == first
    others = {first}
    others.add(inputs.gather(tiny.make_config(tmp_path, guidance_scale=2.0)).fingerprint)
    path = str(tmp_path / "p.txt")
    for text in (b"a cat", b"a dog"):
        storage.put(path, text)
        section = tiny.make_config(tmp_path, prompts=path, judge="none")
        others.add(inputs.gather(section).fingerprint)
    tiny.write_snapshot(project, "sr1", seed=1)
    others.add(inputs.gather(project).fingerprint)
    assert len(others) == 5


def test_an_unknown_sampler_is_an_error_of_the_config(tiny, tmp_path):
    with pytest.raises(ConfigError, match="`eval`: sampler 'plms' is unknown"):
        tiny.make_config(tmp_path, sampler="plms")


def test_guidance_of_a_member_that_knows_no_null_text_is_an_error_before_anything_is_sampled(
    project, tmp_path, tiny
):
    always = {"train": {"caption_drop": 0.0}}
    tiny.write_snapshot(project, "sr1", **always)
    inputs.check_sampling(tiny.make_config(tmp_path, guidance_scale=1.0), inputs.gather(project))
    with pytest.raises(ConfigError, match=r"guidance_scale 3\.0 for member sr1, which was trained"):
        stage.run(project)
    assert not storage.exists(project.cascade)


def test_a_changed_encoder_is_an_error_before_anything_is_sampled(project, tmp_path, tiny):
    from eval.config import EvalConfig
    from imagen import config as configs

    tree = configs.to_tree(project)
    tree["text"]["max_tokens"] = 64
    with pytest.raises(CheckpointError, match="was trained with encoder"):
        stage.run(configs.build(EvalConfig, tree))


def test_plan_tells_steps_and_snapshots_and_writes_nothing(project):
    lines = "\n".join(stage.plan(project))
    assert "sr1: 32 px, dpmpp_2m, 2 steps, guidance 3" in lines
    assert "640 images seen" in lines
    assert lines.endswith("to do: sample, judge, report")
    assert storage.listdir(project.out) == ["base", "data", "index", "sr1"]


def test_plan_of_an_untrained_project_says_what_is_missing(tiny, tmp_path):
    lines = stage.plan(tiny.make_config(tmp_path))
    assert lines[-2].startswith("not ready: member base has no snapshot")
    assert lines[-1] == "hint: run `python -m train CONFIG member=base`"


def test_fingerprint_covers_what_paths_and_names_stand_for(project, tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module, reference = tmp_path / "my_inputs_network.py", tmp_path / "ref.safetensors"
    clip = tmp_path / "clip"
    module.write_text("def net():\n    return None\n")
    storage.put(str(reference), b"one")
    storage.put(f"{clip}/config.json", b"{}")
    features = {"network": "my_inputs_network:net", "reference": str(reference)}
    config = tiny.make_config(tmp_path, features=features, clip=str(clip))
    found = [inputs.gather(config).fingerprint]
    assert inputs.gather(config).fingerprint == found[0]
    storage.put(str(reference), b"another")
    found.append(inputs.gather(config).fingerprint)
    module.write_text("def net():\n    return 1\n")
    found.append(inputs.gather(config).fingerprint)
    storage.put(f"{clip}/config.json", b"[]")
    found.append(inputs.gather(config).fingerprint)
    assert len(set(found)) == 4


def test_weights_that_are_not_there_are_an_error_of_the_config(project, tiny, tmp_path):
    features = {"network": "inception", "weights": str(tmp_path / "none.pth")}
    with pytest.raises(ConfigError, match=r"eval.features.weights `.*none.pth` does not exist"):
        inputs.gather(tiny.make_config(tmp_path, features=features))
