import io
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from eval import extractors, figures, reference, score
from eval.config import EvalConfig
from eval.prompts import Item, items
from imagen import config as configs
from imagen import storage
from imagen.data import digits, index, shapes
from imagen.data import prepared as prepared_set
from imagen.data.images import decode
from imagen.data.prepared import Prepared
from imagen.data.tars import write_tar
from imagen.errors import ConfigError, ShardError


@pytest.fixture(scope="module")
def real(tiny, tmp_path_factory):
    """A prepared data set of 900 digits, and the yardstick made of it."""
    folder = tmp_path_factory.mktemp("real")
    tiny.write_data(folder, 900)
    prepared = Prepared.open(f"{folder}/index")
    made = tiny.make_config(folder)
    return prepared, score.yardstick(prepared, made.members["sr1"], made.eval)


@pytest.fixture
def config(tiny, tmp_path):
    return tiny.make_config(tmp_path)


def as_samples(images, labels):
    items = [Item(digits.caption(label, i % 6), i) for i, label in enumerate(labels)]
    return score.Sampled(items, {"base": [i[::4, ::4] for i in images], "sr1": images})


def test_reference_images_are_those_of_the_tar_split_by_key(real):
    prepared, yardstick = real
    training, heldout = yardstick.training, yardstick.heldout
    assert len(training.images) + len(heldout.images) == 900
    assert len(heldout.images) == len(prepared.rows(0, "heldout")) > 100
    scan, digit = digits.images()[int(prepared.rows(0, "heldout")[0])]
    assert np.array_equal(heldout.images[0][:, :, 0], np.asarray(scan))
    assert heldout.labels()[0] == digit


def test_a_large_data_set_is_represented_evenly(real, monkeypatch):
    monkeypatch.setattr(reference, "MOST_TRAINING", 10)
    chosen = reference.load(real[0], "train", 32, 1)
    assert len(chosen.images) == 10
    assert chosen.total == len(real[1].training.images)
    assert np.array_equal(chosen.images[0], real[1].training.images[0])
    assert np.array_equal(chosen.images[-1], real[1].training.images[-1])


def test_images_too_small_are_counted_by_reason(real):
    found = reference.load(real[0], "heldout", 64, 1)
    assert found.images == []
    assert sum(found.unreadable.values()) == found.total
    assert next(iter(found.unreadable)) == "image of 32 px is smaller than 64 px"


def test_real_unseen_digits_under_their_own_captions_score_high(real, config):
    yardstick = real[1]
    heldout = yardstick.heldout
    sampled = as_samples(heldout.images, heldout.labels())
    found = score.measure(config, sampled, yardstick, {})
    body = found.body
    assert body["digit_accuracy"]["value"] >= 0.95
    assert body["members"]["sr1"] == body["digit_accuracy"]
    assert body["judge"]["heldout_accuracy"]["value"] >= 0.95
    assert body["text_use"]["share_of_possible_gain"]["value"] > 0.94
    assert len(body["per_phrasing"]) == 6
    assert len(found.verdicts) == len(heldout.images)
    assert sum(found.columns["right"]) == body["digit_accuracy"]["hits"]


def test_real_digits_under_other_captions_score_nothing(real, config):
    yardstick = real[1]
    heldout = yardstick.heldout
    wrong = [(label + 1) % 10 for label in heldout.labels()]
    found = score.measure(config, as_samples(heldout.images, wrong), yardstick, {})
    assert found.body["digit_accuracy"]["value"] < 0.02
    assert found.body["text_use"]["share_of_possible_gain"]["interval"][1] < 0


def test_real_unseen_digits_do_not_look_memorised_and_copies_do(real, config):
    yardstick = real[1]
    training, heldout = yardstick.training, yardstick.heldout
    sampled = as_samples(heldout.images, heldout.labels())
    honest = score.measure(config, sampled, yardstick, {}).body["memorisation"]
    assert honest["ratio_of_medians"] == 1
    copies = as_samples(training.images[:40], training.labels()[:40])
    found = score.measure(config, copies, yardstick, {})
    body = found.body["memorisation"]
    assert body["ratio_of_medians"] == 0
    assert body["nearer_than_heldout"]["value"] == 1
    assert found.nearest.index.tolist() == list(range(40))
    assert found.columns["nearest_distance"] == [0.0] * 40
    count = len(training.images)
    assert body["training_images"] == {"used": count, "of": count, "unreadable": {}}


def test_unseen_digits_are_distributed_like_the_data_and_dimmed_ones_are_not(real, config):
    yardstick = real[1]
    heldout = yardstick.heldout
    honest = as_samples(heldout.images, heldout.labels())
    dim = as_samples([i // 2 for i in heldout.images], heldout.labels())
    same, other = (
        score.measure(config, s, yardstick, {}).body["distribution"]["pca"] for s in (honest, dim)
    )
    assert same["fd"] == same["heldout"]["fd"]
    assert same["fd"]["interval"][1] < other["fd"]["interval"][0]
    assert same["kid"]["interval"][1] < other["kid"]["interval"][0]
    assert same["precision"]["value"] > 0.7
    assert same["reference"]["what"] == "711 of 711 training images"
    assert same["network"] == yardstick.components.fingerprint


def test_the_real_images_beside_the_samples_are_spread_over_the_whole_split(real, config):
    # sorted by class, as shards often are: the first ones would be zeros alone
    labels = np.array(real[1].heldout.labels())
    ordered = [real[1].heldout.images[i] for i in np.argsort(labels, kind="stable")]
    yardstick = replace(real[1], heldout=replace(real[1].heldout, images=ordered))
    training = real[1].training
    sampled = as_samples(training.images[:40], training.labels()[:40])
    beside = score.measure(config, sampled, yardstick, {}).body["distribution"]["pca"]["heldout"]
    assert beside["fd"]["n"] == 40
    evenly = ordered[:: len(ordered) // 40][:40]
    same = score.measure(config, as_samples(evenly, [0] * 40), yardstick, {})
    assert beside["fd"]["value"] < 1.3 * same.body["distribution"]["pca"]["fd"]["value"]


def test_samples_are_gone_through_once_a_block_at_a_time(real, config, monkeypatch):
    class Counted(Sequence):
        def __init__(self, images):
            self.images, self.reads = images, []

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            self.reads.append(i)
            return self.images[i]

    yardstick = real[1]
    labels, images = yardstick.heldout.labels(), yardstick.heldout.images
    whole = score.measure(config, as_samples(images, labels), yardstick, {})
    monkeypatch.setattr(score, "BLOCK", 17)
    lazy = as_samples(images, labels)
    counted = {name: Counted(images) for name, images in lazy.members.items()}
    found = score.measure(config, score.Sampled(lazy.items, counted), yardstick, {})
    for images in counted.values():
        assert images.reads == list(range(len(images)))
    assert found.columns == whole.columns
    one, other = (json.loads(json.dumps(f.body)) for f in (found, whole))
    apart, want = (body.pop("distribution")["pca"] for body in (one, other))
    assert one == other
    assert apart["fd"]["value"] == pytest.approx(want["fd"]["value"], rel=1e-4)


def test_features_of_clip_are_scored_by_prompt(real, config):
    yardstick = real[1]
    heldout = yardstick.heldout
    sampled = as_samples(heldout.images[:50], heldout.labels()[:50])
    rows = np.eye(50, dtype=np.float32)
    found = score.measure(config, sampled, yardstick, {"clip_image": rows, "clip_text": rows})
    assert found.body["clip"]["score"]["value"] == 100
    assert found.body["clip"]["gap"]["value"] == 100
    assert found.columns["clip"] == [100.0] * 50


def test_a_point_of_a_sweep_has_the_same_figures_by_short_names(real, config):
    yardstick = real[1]
    heldout = yardstick.heldout
    sampled = as_samples(heldout.images, heldout.labels())
    rows = np.eye(len(heldout.images), dtype=np.float32)
    features = {"clip_image": rows, "clip_text": rows}
    body = score.measure(config, sampled, yardstick, features).body
    point = score.measure_point(config, sampled, yardstick, features)
    assert point == {
        "accuracy": body["digit_accuracy"],
        **{
            name: body["distribution"]["pca"][name] for name in ("fd", "kid", "precision", "recall")
        },
        "clip": body["clip"]["score"],
        "consistency": body["fidelity"]["sr1"]["consistency"],
        "colour_drift": body["fidelity"]["sr1"]["colour_drift"],
    }


def test_a_base_alone_is_measured_too(real, tiny, tmp_path):
    yardstick = real[1]
    config = tiny.make_config(tmp_path, judge="none", features={"network": "none"})
    bare = replace(yardstick, judge=None, components=None, statistics=None)
    items = [Item("x", i) for i in range(5)]
    sampled = score.Sampled(items, {"base": yardstick.heldout.images[:5]})
    found = score.measure(config, sampled, bare, {})
    assert set(found.body) == {"memorisation"}
    assert set(found.columns) == {"nearest_distance"}
    assert score.measure_point(config, sampled, bare, {}) == {}


def test_features_of_a_network_are_compared_with_those_of_the_training_images(
    real, tiny, tmp_path, monkeypatch
):
    (tmp_path / "my_score_network.py").write_text(
        "def sums():\n    return lambda x: x.reshape(len(x), 3, 16, -1).sum(3)[:, 0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    features = {"network": "my_score_network:sums"}
    config = tiny.make_config(tmp_path, judge="none", features=features)
    last, kept = config.members["sr1"], str(tmp_path / "kept")
    yardstick = score.yardstick(real[0], last, config.eval, kept)
    assert yardstick.statistics.gaussian.n == 711
    assert yardstick.statistics.what == "711 training images of the data set"
    (file,) = storage.listdir(kept)
    monkeypatch.setattr(extractors, "load", None)  # what is kept is not looked at again
    again = score.yardstick(real[0], last, config.eval, kept).statistics
    np.testing.assert_array_equal(again.gaussian.scatter, yardstick.statistics.gaussian.scatter)
    images = yardstick.heldout.images
    sampled = score.Sampled([Item("x", i) for i in range(len(images))], {"sr1": images})
    rows = np.stack([i.reshape(16, -1).sum(axis=1) / 127.5 - 64 for i in images])
    body = score.measure(config, sampled, yardstick, {"sums": rows.astype(np.float32)}).body
    assert body["distribution"]["sums"]["fd"]["value"] > 0
    # the file may also be named in the config, and is refused for another network
    named = tiny.make_config(
        tmp_path, judge="none", features=features | {"reference": f"{kept}/{file}"}
    )
    assert score.yardstick(real[0], last, named.eval).statistics.gaussian.n == 711
    # and is left out for a line-up that draws another size, a base alone for one
    base = score.yardstick(real[0], replace(last, size=16), named.eval)
    assert base.statistics is None
    alone = score.Sampled(sampled.items[:5], {"base": [i[::2, ::2] for i in images[:5]]})
    body = score.measure(named, alone, base, {"sums": rows[:5].astype(np.float32)}).body
    assert "32 px, 1 channels, the samples have 16 px" in body["distribution"]["sums"]["left_out"]
    assert figures.figures(body["distribution"]) == {}
    (tmp_path / "my_score_network.py").write_text("def sums():\n    return None\n")
    with pytest.raises(ConfigError, match="is of the network sums-"):
        score.yardstick(real[0], last, named.eval)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A prepared data set of 200 pictures of shapes, a tenth of the pairs held out."""
    folder, samples = tmp_path_factory.mktemp("scenes"), []
    for i in range(200):
        scene = shapes.scene(3, i, shapes.training_pairs(0.1))
        out = io.BytesIO()
        shapes.draw(scene, 3, i, 64).save(out, "png")
        text = shapes.caption(scene, shapes.phrasing(3, i))
        samples.append((f"s{i:04d}", {"png": out.getvalue(), "txt": text.encode()}))
    tar, path = write_tar(samples), f"{folder}/data/00000.tar"
    storage.put(path, tar)
    index_dir = f"{folder}/index"
    source = {"tar": prepared_set.relative_tar(index_dir, path), "tar_crc32c": storage.crc32c(tar)}
    body = index.publish(index_dir, "00000", index.index_tar(tar, path, 0.2), source)
    prepared_set.publish(index_dir, [body], 0.2)
    return Prepared.open(index_dir)


def test_pictures_of_shapes_are_judged_by_attribute_and_real_ones_are_right(scenes, tiny, tmp_path):
    tree = json.loads(json.dumps(tiny.TREE))
    for member, size in (("base", 16), ("sr1", 64)):
        tree["members"][member]["size"] = size
        tree["members"][member]["network"]["channels"] = 3
    section = {"prompts": "shapes", "judge": "shapes", "count": 40, "features": {"network": "none"}}
    config = configs.build(EvalConfig, {**tree, "out": str(tmp_path), "eval": section})
    yardstick = score.yardstick(scenes, config.members["sr1"], config.eval)
    assert yardstick.trained == set(shapes.training_pairs(0.1))
    assert yardstick.judge is None
    chosen = items(config.eval)
    drawn = [
        np.asarray(shapes.draw(shapes.parse(c.prompt), 9, i, 64)) for i, c in enumerate(chosen)
    ]
    small = [
        np.asarray(Image.fromarray(d).resize((16, 16), Image.Resampling.LANCZOS)) for d in drawn
    ]
    found = score.measure(
        config, score.Sampled(chosen, {"base": small, "sr1": drawn}), yardstick, {}
    )
    body = found.body["shapes"]
    assert body["all_right"]["value"] >= 0.95
    assert body["heldout"]["all_right"]["n"] == body["seen"]["all_right"]["n"] == 20
    assert body["heldout_judge"]["all_right"]["value"] >= 0.95
    assert body["heldout_judge"]["all_right"]["n"] == len(scenes.rows(0, "heldout"))
    assert found.body["fidelity"]["sr1"]["consistency"]["value"] == 0
    assert found.verdicts is None
    assert len(found.columns["seen"]) == 40
    point = score.measure_point(
        config, score.Sampled(chosen, {"base": small, "sr1": drawn}), yardstick, {}
    )
    assert point["accuracy"] == body["all_right"]


def test_data_that_speak_of_no_shapes_are_refused_by_their_judge(real, tiny, tmp_path):
    section = tiny.make_config(tmp_path, judge="none", features={"network": "none"}).eval
    wrong = replace(section, prompts="shapes", judge="shapes")
    with pytest.raises(ConfigError, match="no training caption speaks of shapes"):
        score.yardstick(real[0], tiny.make_config(tmp_path).members["sr1"], wrong)


def test_a_caption_that_is_no_digit_is_an_error_for_the_judge_of_digits():
    image = np.zeros((32, 32, 1), np.uint8)
    with pytest.raises(ShardError, match="caption 'a red square'"):
        reference.Reference([image], ["a red square"], [(0, 0)], 1).labels()


def test_no_readable_training_image_is_an_error_that_says_why(real, tiny, tmp_path):
    larger = replace(tiny.make_config(tmp_path).members["sr1"], size=64)
    with pytest.raises(ShardError, match=r"none of the 711 .* readable: .*smaller than 64 px"):
        score.yardstick(real[0], larger, tiny.make_config(tmp_path).eval)


def test_pictures_that_are_no_squares_are_compared_as_members_draw_them(real, tiny, tmp_path):
    prepared = real[0]
    wide = replace(tiny.make_config(tmp_path).members["sr1"], size=(16, 32))
    config = tiny.make_config(tmp_path, judge="none", features={"network": "none"})
    yardstick = score.yardstick(prepared, wide, config.eval)
    where = yardstick.training.where[:5]
    drawn = [decode(prepared.image(*w), ((16, 32),), 1)[0].transpose(1, 2, 0) for w in where]
    assert drawn[0].shape == (16, 32, 1)
    assert yardstick.training.images[0].shape == (32, 32, 1)
    sampled = score.Sampled([Item("x", i) for i in range(5)], {"sr1": drawn})
    found = score.measure(config, sampled, yardstick, {})
    assert found.nearest.index.tolist() == list(range(5))
    assert found.body["memorisation"]["ratio_of_medians"] == 0
