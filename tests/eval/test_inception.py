"""The network of FID, with random weights: those that FID is defined by are not here."""

import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from eval import extractors, inception
from eval.config import EvalSection, FeaturesConfig
from eval.measures import frechet
from eval.measures.frechet import Gaussian
from imagen.errors import ConfigError


@pytest.fixture(scope="module")
def state():
    """Weights that keep pictures apart: the network's own first ones fade to nothing."""
    with inception._alone() as module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kept = {}
            module.FeatureExtractorInceptionV3.load_state_dict = lambda net, _: kept.update(
                net.state_dict()
            )
            module.load_state_dict_from_url = lambda *_, **__: {}
            module.FeatureExtractorInceptionV3("any", ["2048"], verbose=False)
            for name, value in kept.items():
                if name.endswith("conv.weight"):
                    kept[name] = torch.randn_like(value) * (2 / value[0].numel()) ** 0.5
        return kept


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("weights") / "inception.safetensors")
    safetensors.torch.save_file(state, path)
    return path


def pictures(n, side=32, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (side, side, channels), dtype=np.uint8) for _ in range(n)]


@pytest.mark.slow
def test_features_are_those_of_torch_fidelitys_network(weights, state):
    extract = extractors.load(FeaturesConfig(network="inception", weights=weights), "cpu")
    images = pictures(3)
    found = extract(images)
    with inception._alone() as module:
        module.load_state_dict_from_url = lambda *_, **__: state
        net = module.FeatureExtractorInceptionV3("any", ["2048"], verbose=False)
    planes = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2))
    (want,) = net(planes)
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-5)
    assert found.std(axis=0).max() > 1e-3  # pictures differ
    grey = pictures(1, channels=1)
    one = extract(grey)
    three = extract([np.repeat(grey[0], 3, axis=2)])
    assert np.array_equal(one, three)
    assert "torch_fidelity" not in sys.modules  # nobody finds a package without its `__init__`
    distance = frechet.distance(Gaussian.of(found), Gaussian.of(found))
    assert distance == pytest.approx(0, abs=1e-3 * float(Gaussian.of(found).cov.trace()))


def test_other_weights_than_those_of_fid_are_not_called_inception(weights):
    features = FeaturesConfig(network="inception", weights=weights)
    assert extractors.name_of(features) == "inception_other"
    assert extractors.name_of(FeaturesConfig(network="inception")) == "inception"
    assert inception.fingerprint("") == "inception-6726825d"
    assert extractors.network_fingerprint(features) != inception.fingerprint("")


def test_without_weights_and_network_the_error_says_which_file_and_where_to_put_it(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights-6726825d.pth")
    section = EvalSection(features=FeaturesConfig(network="inception"))
    with pytest.raises(ConfigError, match="cannot be downloaded from http") as caught:
        extractors.check(section)
    assert str(tmp_path / "checkpoints" / "weights-6726825d.pth") in caught.value.hint
    assert "eval.features.weights=PATH" in caught.value.hint
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_path_without_weights_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pth` does not exist"):
        inception.check(str(tmp_path / "none.pth"))


def test_weights_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "evil.pth"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(ConfigError, match="holds no tensors that can be read"):
        inception.load(str(path), "cpu")
    assert not (tmp_path / "ran").exists()


def test_tensors_of_another_network_are_refused(tmp_path):
    path = str(tmp_path / "other.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="has not the weights of inception"):
        inception.load(path, "cpu")
