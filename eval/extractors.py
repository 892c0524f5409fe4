"""Networks that pictures are looked at with, one chunk at a time, beside the cascade.

The FID inception, a network of the user's own, CLIP. Principal components need no network: they
are in `eval.components`.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import clip, inception
from eval.config import EvalSection, FeaturesConfig
from imagen import manifest, storage
from imagen.errors import ConfigError

NONE, PCA, INCEPTION = "none", "pca", "inception"
CLIP_IMAGE, CLIP_TEXT = "clip_image", "clip_text"
"""Names of CLIP's arrays."""
_BATCH = 32

Network = Callable[[Sequence[np.ndarray]], np.ndarray]
"""uint8 (h, w, c) pictures of one size -> float32 (n, d)."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """The networks that an `eval` section asks for, loaded."""

    fingerprint: str
    """What decides the arrays beside the pictures."""
    network: tuple[str, Network] | None
    clip: clip.Clip | None

    def __call__(
        self, images: Sequence[np.ndarray], prompts: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Return float32 (n, d) arrays by name, for uint8 (h, w, c) pictures of one size."""
        arrays = {}
        if self.network is not None:
            name, network = self.network
            arrays[name] = network(images)
        if self.clip is not None:
            parts = [self.clip.images(part) for part in _batches(images)]
            arrays[CLIP_IMAGE] = np.concatenate(parts)
            arrays[CLIP_TEXT] = self.clip.texts(prompts)
        return arrays


def make(section: EvalSection, device: str) -> Extractor | None:
    """Load what a section asks for; None: nothing. Raises ConfigError."""
    mark = fingerprint(section)
    if not mark:
        return None
    features = section.features
    network = (name_of(features), load(features, device)) if has_network(features) else None
    return Extractor(mark, network, clip.Clip(section.clip, device) if section.clip else None)


def fingerprint(section: EvalSection) -> str:
    """Return what `make(section).fingerprint` would be, loading nothing; "" where it gives None."""
    parts = {}
    if has_network(section.features):
        parts["network"] = network_fingerprint(section.features)
    if section.clip:
        parts["clip"] = clip.fingerprint(section.clip)
    return manifest.fingerprint(parts) if parts else ""


def check(section: EvalSection) -> None:
    """Raise ConfigError unless all that a section asks for is there, downloading what may be."""
    features = section.features
    if features.weights and features.network != INCEPTION:
        raise ConfigError(
            f"eval.features.weights are those of inception, not of {features.network!r}",
            "leave them out, or set eval.features.network=inception",
        )
    if features.reference and not has_network(features):
        raise ConfigError(
            f"eval.features.reference is nothing that {features.network!r} compares with",
            "leave it out, or set eval.features.network to the one of the file",
        )
    if features.network == INCEPTION:
        inception.check(features.weights)
    elif has_network(features):
        _function(features.network)
    if section.clip:
        clip.locate(section.clip)


def has_network(features: FeaturesConfig) -> bool:
    """Tell whether pictures are looked at with a network, which may want a GPU."""
    return features.network not in (NONE, PCA)


def name_of(features: FeaturesConfig) -> str:
    """Return the word by which metrics.json knows a network: of one's own, the function's name.

    Inception with other weights than those of FID has another name: it is no FID.
    """
    if features.network == INCEPTION and not inception.is_official(features.weights):
        return "inception_other"
    return features.network.rpartition(":")[2]


def network_fingerprint(features: FeaturesConfig) -> str:
    """Return what identifies a network: its weights, or the source of the module that makes it."""
    if features.network == INCEPTION:
        return inception.fingerprint(features.weights)
    function = _function(features.network)
    path = inspect.getsourcefile(function)
    source = b"" if path is None else storage.get(path)
    return f"{name_of(features)}-{hashlib.sha256(source).hexdigest()[:16]}"


def load(features: FeaturesConfig, device: str) -> Network:
    """Load inception or a network of the user's own. Raises ConfigError."""
    if features.network == INCEPTION:
        return _inception(features.weights, device)
    return _own(features.network, device)


def _inception(weights: str, device: str) -> Network:
    import torch

    net = inception.load(weights, device)

    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            parts = [net(_planes(part).to(device))[0].cpu().numpy() for part in _batches(images)]
        return np.concatenate(parts)

    return extract


def _own(network: str, device: str) -> Network:
    import torch

    net: Any = _function(network)()
    if isinstance(net, torch.nn.Module):
        net = net.to(device).eval()

    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        parts = []
        for part in _batches(images):
            with torch.no_grad():
                found = net(_planes(part).to(device).float() / 127.5 - 1)
            parts.append(_rows(network, found, len(part)))
        return np.concatenate(parts)

    return extract


def _rows(network: str, found: Any, count: int) -> np.ndarray:
    rows = np.asarray(found.cpu() if hasattr(found, "cpu") else found, np.float32)
    if rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
        raise ConfigError(
            f"eval.features.network `{network}` made features of shape {rows.shape} from {count} "
            f"images, {np.isfinite(rows).sum()} of {rows.size} numbers finite",
            "its callable takes (n, 3, h, w) in [-1, 1] and returns (n, d), all numbers finite",
        )
    return rows


def _function(network: str) -> Callable[[], Any]:
    """Return the function `package.module:function`. Raises ConfigError."""
    module, colon, name = network.partition(":")
    hint = "use `pca`, `inception`, `none`, or `package.module:function`, importable from here"
    if (
        not colon
        or not name.isidentifier()
        or name in (NONE, PCA, INCEPTION, CLIP_IMAGE, CLIP_TEXT)
    ):
        raise ConfigError(f"eval.features.network {network!r} is no network", hint)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as err:
        raise ConfigError(f"eval.features.network {network!r}: {err}", hint) from err


def _planes(images: Sequence[np.ndarray]) -> Any:
    """Return uint8 (n, 3, h, w); grey pictures three times."""
    import torch

    stacked = np.stack(images).transpose(0, 3, 1, 2)
    colour = np.repeat(stacked, 3, axis=1) if stacked.shape[1] == 1 else stacked
    return torch.from_numpy(np.ascontiguousarray(colour))


def _batches(images: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
