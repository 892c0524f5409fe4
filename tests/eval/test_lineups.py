import pytest

from eval import inputs, lineups
from imagen import assembly, cascade, manifest, storage
from imagen.errors import CheckpointError
from imagen.text.encoder import encoder_fingerprint


def seen(config):
    return [
        (lineup.images, {name: int(folder[-12:]) for name, folder in lineup.snapshots.items()})
        for lineup in lineups.lineups(config)
    ]


def test_a_lineup_has_the_newest_snapshot_of_each_member_up_to_its_images(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    for images in (100, 300, 400):
        tiny.write_snapshot(config, "base", images_seen=images)
    for images in (200, 300):
        tiny.write_snapshot(config, "sr1", images_seen=images)
    assert seen(config) == [
        (100, {"base": 100}),
        (200, {"base": 100, "sr1": 200}),
        (300, {"base": 300, "sr1": 300}),
        (400, {"base": 400, "sr1": 300}),
    ]
    newest = lineups.newest(config)
    assert newest.snapshots == lineups.lineups(config)[-1].snapshots


def test_a_member_without_the_one_below_it_and_untrained_snapshots_are_no_lineup(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    tiny.write_snapshot(config, "sr1", images_seen=100)
    tiny.write_snapshot(config, "base", images_seen=0)
    assert seen(config) == []
    tiny.write_snapshot(config, "base", images_seen=200)
    assert seen(config) == [(200, {"base": 200, "sr1": 100})]


def test_a_named_snapshot_is_completed_by_the_newest_of_the_members_below(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    old = tiny.write_snapshot(config, "base", images_seen=100)
    new = tiny.write_snapshot(config, "base", images_seen=300)
    upper = tiny.write_snapshot(config, "sr1", images_seen=200)
    assert lineups.named(config, [old]).snapshots == {"base": old}
    assert lineups.named(config, [upper]).snapshots == {"base": new, "sr1": upper}
    assert lineups.named(config, [upper, old]).snapshots == {"base": old, "sr1": upper}
    assert not lineups.named(config, [old]).named  # it is the line-up of 100 images
    assert lineups.named(config, [new]).named  # a base of 300 images alone is none
    with pytest.raises(CheckpointError, match="is a snapshot of base, a second one"):
        lineups.named(config, [old, new])
    with pytest.raises(CheckpointError, match="no manifest"):
        lineups.named(config, [f"{tmp_path}/nothing"])


def test_a_cascade_directory_is_the_lineup_that_it_was_made_of(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    for member in config.members:
        tiny.write_snapshot(config, member)
    chosen = lineups.newest(config)
    fingerprint = encoder_fingerprint(config.text)
    made = cascade.assemble(config.cascade, chosen.snapshots, config.text, fingerprint)
    again = lineups.given(config, config.cascade)
    body = assembly.describe(again.snapshots, config.text, fingerprint)
    assert manifest.fingerprint(body) == made
    assert inputs.gather(config, again).fingerprint == inputs.gather(config, chosen).fingerprint


def test_a_cascade_loads_from_the_snapshots_where_they_lie(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    for member in config.members:
        tiny.write_snapshot(config, member)
    chosen = lineups.newest(config).snapshots
    fingerprint = encoder_fingerprint(config.text)
    made = cascade.assemble(config.cascade, chosen, config.text, fingerprint)
    loaded = cascade.Cascade.of_snapshots(chosen, config.text)
    assembled = cascade.Cascade.load(config.cascade)
    assert loaded.fingerprint == assembled.fingerprint == made
    images = [c.sample(["seven"], [1])["sr1"] for c in (loaded, assembled)]
    assert images[0].equal(images[1])


def test_trainings_are_over_when_each_has_written_its_manifest(tiny, tmp_path):
    config = tiny.make_config(tmp_path)
    assert not lineups.finished(config)
    for member in config.members:
        manifest.write(storage.join(config.run_dir(member), "run.json"), "run", {"files": {}})
    assert lineups.finished(config)
