"""The network of FID: the Inception that its paper used, as torch-fidelity has ported it.

torch-fidelity's package imports torchvision, which nothing here needs, and reads weights as a
pickle that may run any code. So its one file with the network is imported alone, and the weights
are read as tensors only.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from imagen import storage
from imagen.errors import ConfigError

if TYPE_CHECKING:
    import torch

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
"""The weights of FID, converted from TensorFlow; the name ends with their hash."""
OFFICIAL = "6726825d"
"""First digits of the SHA-256 of those weights: with others it is no FID."""
_PACKAGE = "torch_fidelity"
_MODULE = f"{_PACKAGE}.feature_extractor_inceptionv3"


def cached() -> str:
    """Return where the downloaded weights are, or would be."""
    import torch

    return os.path.join(torch.hub.get_dir(), "checkpoints", storage.name(URL))


def check(weights: str) -> None:
    """Raise ConfigError unless package and weights are there, downloading those if need be."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise ConfigError(
            "features of inception need torch-fidelity, which is not installed",
            "run `pip install torch-fidelity --no-deps`, or set eval.features.network=pca",
        )
    locate(weights)


def locate(weights: str) -> str:
    """Return the path of the weights, downloading them when none is given. Raises ConfigError."""
    if not weights:
        if not os.path.exists(cached()):
            _download(cached())
        return cached()
    if not storage.exists(weights):
        raise ConfigError(
            f"eval.features.weights `{weights}` does not exist", f"it is the file of {URL}"
        )
    return weights


def _download(path: str) -> None:
    import torch

    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, path, hash_prefix=OFFICIAL, progress=False)
    except (OSError, RuntimeError) as err:
        raise ConfigError(
            f"the weights of inception cannot be downloaded from {URL}: {err}",
            f"fetch that file where there is a network, then put it at `{path}`, or anywhere and "
            "set eval.features.weights=PATH; eval.features.network=pca needs no weights",
        ) from err


def fingerprint(weights: str) -> str:
    """Return what identifies the network without loading it: the hash of its weights.

    Raises ConfigError when they are not there.
    """
    found = _hash(locate(weights), storage.version(weights)) if weights else OFFICIAL
    return f"inception-{found}"


def is_official(weights: str) -> bool:
    """Tell whether a Fréchet distance with these weights may be called FID."""
    return fingerprint(weights) == f"inception-{OFFICIAL}"


@functools.cache
def _hash(path: str, _version: str) -> str:
    return hashlib.sha256(storage.get(path)).hexdigest()[: len(OFFICIAL)]


def load(weights: str, device: str) -> "torch.nn.Module":
    """Return the network: uint8 (n, 3, h, w) of any size to a tuple of one float32 (n, 2048).

    Raises ConfigError.
    """
    path = locate(weights)
    state = _state(path)
    with _alone() as module:
        # its constructor would read them itself, as a pickle
        module.load_state_dict_from_url = lambda *_, **__: state  # type: ignore[attr-defined]
        try:
            net = module.FeatureExtractorInceptionV3(_MODULE, ["2048"], verbose=False)
        except RuntimeError as err:
            raise ConfigError(
                f"`{path}` has not the weights of inception: {str(err).splitlines()[0]}",
                f"it is the file of {URL}",
            ) from err
    return net.to(device)


def _state(path: str) -> dict[str, Any]:
    import safetensors.torch
    import torch

    data = storage.get(path)
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:  # unpickling damaged bytes raises anything
        reason = (str(err).splitlines() or [""])[0]
        raise ConfigError(
            f"`{path}` holds no tensors that can be read: {type(err).__name__}: {reason}",
            f"it is the file of {URL}",
        ) from err


@contextlib.contextmanager
def _alone() -> Iterator[ModuleType]:
    """Give the module of the network, its package's own `__init__` left out; leave no trace."""
    before = {name: sys.modules.pop(name) for name in _ours()}
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None, "checked before"
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        yield importlib.import_module(_MODULE)
    finally:
        for name in _ours():
            del sys.modules[name]
        sys.modules.update(before)


def _ours() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == _PACKAGE]
