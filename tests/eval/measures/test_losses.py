import json

import numpy as np
import pytest

from eval.measures import losses
from imagen import manifest, storage
from train import validation

BODY = {
    "config": {"size": 8},
    "files": {"weights.safetensors": {"bytes": 3, "crc32c": "00000000"}},
    "extras": {"raw": {"bytes": 4, "crc32c": "11111111"}},
    "provenance": {"images_seen": 640},
}


def result(run, shuffled=True, weights=None, **more):
    draw = np.random.default_rng(0)
    captioned = draw.normal(1, 0.1, 50)
    other = captioned + 0.3 if shuffled else None
    found = validation.Losses(
        np.linspace(-12, 12, 50), captioned, captioned + draw.normal(0.2, 0.01, 50), other, {}
    )
    body = {
        "weights": weights
        or {
            "config": manifest.fingerprint(BODY["config"]),
            "files": BODY["files"],
            "raw": BODY["extras"]["raw"],
        },
        "ema": validation.summary(found),
        "bad": {"unreadable": 2},
        "files": {},
        **more,
    }
    manifest.write(storage.join(run, "validation", "000000000640.json"), "validation", body)
    return found


def test_losses_are_those_that_training_found_with_intervals(tmp_path):
    found = result(str(tmp_path))
    body = losses.read(str(tmp_path), BODY)
    steps = np.diff(found.captioned[np.argsort(found.logsnr)])
    error = ((steps**2).sum() / 2 * 50 / 49) ** 0.5 / 50
    assert body["loss"]["value"] == pytest.approx(found.captioned.mean(), rel=1e-5)
    low, high = body["loss"]["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=1e-3)
    assert body["shuffle_gap"]["value"] == pytest.approx(0.3, rel=1e-5)
    assert body["caption_gap"]["interval"][0] > 0.19
    assert sum(part["count"] for part in body["bins"]) == 50
    assert body["bins"][0]["logsnr"] == [None, -10.0]
    assert body["left_out"] == {"unreadable": 2}
    assert json.loads(json.dumps(body)) == body


def test_a_result_of_other_weights_does_not_count(tmp_path):
    result(str(tmp_path), weights={"config": "other", "files": {}, "raw": None})
    assert losses.read(str(tmp_path), BODY) is None


def test_a_snapshot_that_was_not_validated_has_no_losses(tmp_path):
    assert losses.read(str(tmp_path), BODY) is None


def test_results_of_members_without_text_or_of_an_older_version_lack_what_they_lack(tmp_path):
    result(str(tmp_path), shuffled=False)
    body = losses.read(str(tmp_path), BODY)
    assert "shuffle_gap" not in body
    assert "caption_gap" in body


def test_the_identity_of_weights_is_that_of_training(tmp_path):
    from train.results import Results

    assert losses._weights(BODY) == Results.weights(BODY)
