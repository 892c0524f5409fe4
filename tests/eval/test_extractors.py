import sys

import numpy as np
import pytest

from eval import extractors
from eval.config import EvalSection, FeaturesConfig
from imagen.errors import ConfigError

SOURCE = """
import torch

class Means(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        assert x.dtype == torch.float32 and x.shape[1] == 3
        return self.drop(x.mean(dim=(2, 3)))

def means():
    return Means()

def no_numbers():
    return lambda x: x.mean(dim=(2, 3)) / 0

def wrong_shape():
    return lambda x: x.mean(dim=(1, 2, 3))

def in_numpy():
    return lambda x: x.numpy().max(axis=(2, 3))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that names a network of a user's module."""
    (tmp_path / "my_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return lambda name: FeaturesConfig(network=f"my_networks:{name}")


def pictures(n, channels=3):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (8, 8, channels), dtype=np.uint8) for _ in range(n)]


def test_a_users_network_sees_pictures_in_the_range_of_training(own):
    images = pictures(70)
    arrays = extractors.make(EvalSection(features=own("means")), "cpu")(images, [""] * 70)
    assert list(arrays) == ["means"]
    want = np.stack(images).mean(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(arrays["means"], want, atol=1e-5)  # in eval mode: nothing dropped


def test_a_users_network_may_return_numpy_and_sees_grey_three_times(own):
    found = extractors.load(own("in_numpy"), "cpu")(pictures(3, channels=1))
    assert found.shape == (3, 3)
    assert (found[:, 0] == found[:, 1]).all()


@pytest.mark.parametrize("name", ["no_numbers", "wrong_shape"])
def test_features_that_are_no_rows_of_numbers_are_an_error(own, name):
    extract = extractors.load(own(name), "cpu")
    with pytest.raises(ConfigError, match=f"`my_networks:{name}` made features of shape"):
        extract(pictures(2))


def test_the_fingerprint_is_of_the_source(own, tmp_path):
    one, other = (EvalSection(features=own(name)) for name in ("means", "in_numpy"))
    assert extractors.fingerprint(one) == extractors.make(one, "cpu").fingerprint
    assert extractors.fingerprint(one) != extractors.fingerprint(other)
    before = extractors.fingerprint(one)
    (tmp_path / "my_networks.py").write_text(SOURCE + "# changed\n")
    assert extractors.fingerprint(one) != before


@pytest.mark.parametrize("network", ["pca", "none"])
def test_what_needs_no_network_has_no_extractor(network):
    section = EvalSection(features=FeaturesConfig(network=network))
    extractors.check(section)
    assert extractors.make(section, "cpu") is None
    assert extractors.fingerprint(section) == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "vgg"}, "'vgg' is no network"),
        ({"network": "no.such.module:f"}, "No module named"),
        ({"network": "eval.extractors:nothing"}, "has no attribute 'nothing'"),
        ({"network": "eval.extractors:pca"}, "is no network"),
        ({"network": "pca", "weights": "w.pth"}, "weights are those of inception"),
        ({"network": "pca", "reference": "r.safetensors"}, "nothing that 'pca' compares with"),
    ],
)
def test_features_that_cannot_be_made_are_refused_before_anything_is_sampled(values, message):
    with pytest.raises(ConfigError, match=message):
        extractors.check(EvalSection(features=FeaturesConfig(**values)))
