import numpy as np
import pytest

from eval import reference, score
from eval.prompts import Item
from imagen.data import digits
from imagen.data.images import decode
from imagen.data.prepared import Prepared
from imagen.errors import ShardError


@pytest.fixture(scope="module")
def real(tiny, tmp_path_factory):
    """A prepared data set of 900 digits, and the yardstick made of it."""
    folder = tmp_path_factory.mktemp("real")
    tiny.write_data(folder, 900)
    prepared = Prepared.open(f"{folder}/index")
    last = tiny.make_config(folder).members["sr1"]
    return prepared, score.yardstick(prepared, last, "digits")


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


def test_real_unseen_digits_under_their_own_captions_score_high(real):
    yardstick = real[1]
    heldout = yardstick.heldout
    sampled = as_samples(heldout.images, heldout.labels())
    body, seen = score.digit_accuracy(sampled, yardstick, yardstick.judge)
    assert body["digit_accuracy"]["value"] >= 0.95
    assert body["members"]["sr1"] == body["digit_accuracy"]
    assert body["judge"]["heldout_accuracy"]["value"] >= 0.95
    assert body["text_use"]["share_of_possible_gain"] > 0.94
    assert len(body["per_phrasing"]) == 6
    assert len(seen) == len(heldout.images)


def test_real_digits_under_other_captions_score_nothing(real):
    yardstick = real[1]
    heldout = yardstick.heldout
    wrong = [(label + 1) % 10 for label in heldout.labels()]
    body, _ = score.digit_accuracy(as_samples(heldout.images, wrong), yardstick, yardstick.judge)
    assert body["digit_accuracy"]["value"] < 0.02
    assert body["text_use"]["share_of_possible_gain"] < 0


def test_real_unseen_digits_do_not_look_memorised_and_copies_do(real):
    yardstick = real[1]
    training, heldout = yardstick.training, yardstick.heldout
    honest, _ = score.memorisation(as_samples(heldout.images, heldout.labels()), yardstick)
    assert honest["ratio_of_medians"] == 1
    copies = as_samples(training.images[:40], training.labels()[:40])
    body, nearest = score.memorisation(copies, yardstick)
    assert body["ratio_of_medians"] == 0
    assert body["nearer_than_heldout"]["value"] == 1
    assert nearest.index.tolist() == list(range(40))
    count = len(training.images)
    assert body["training_images"] == {"used": count, "of": count, "unreadable": {}}


def test_a_caption_that_is_no_digit_is_an_error_for_the_judge_of_digits():
    image = np.zeros((32, 32, 1), np.uint8)
    with pytest.raises(ShardError, match="caption 'a red square'"):
        reference.Reference([image], ["a red square"], [(0, 0)], 1).labels()


def test_no_readable_training_image_is_an_error_that_says_why(real, tiny, tmp_path):
    from dataclasses import replace

    larger = replace(tiny.make_config(tmp_path).members["sr1"], size=64)
    with pytest.raises(ShardError, match=r"none of the 711 .* readable: .*smaller than 64 px"):
        score.yardstick(real[0], larger, "none")


def test_pictures_that_are_no_squares_are_compared_as_members_draw_them(real, tiny, tmp_path):
    from dataclasses import replace

    prepared = real[0]
    wide = replace(tiny.make_config(tmp_path).members["sr1"], size=(16, 32))
    yardstick = score.yardstick(prepared, wide, "none")
    where = yardstick.training.where[:5]
    drawn = [decode(prepared.image(*w), ((16, 32),), 1)[0].transpose(1, 2, 0) for w in where]
    assert drawn[0].shape == (16, 32, 1)
    assert yardstick.training.images[0].shape == (32, 32, 1)
    sampled = score.Sampled([Item("x", i) for i in range(5)], {"sr1": drawn})
    body, nearest = score.memorisation(sampled, yardstick)
    assert nearest.index.tolist() == list(range(5))
    assert body["ratio_of_medians"] == 0
