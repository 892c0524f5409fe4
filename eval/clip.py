"""CLIP of Hugging Face, by name or from a local folder: how well a picture fits a text."""

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagen import manifest
from imagen.errors import ConfigError
from imagen.text.hf import content_hash

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_NEEDED = ("config.json", "preprocessor_config.json")


def locate(name: str) -> str:
    """Return the local folder of a model, downloading it if need be. Raises ConfigError."""
    folder = name if os.path.isdir(name) else _from_hub(name)
    found = os.listdir(folder)
    missing = [file for file in _NEEDED if file not in found]
    if not any(file.endswith(".safetensors") for file in found):
        missing.append("*.safetensors (weights in pickles are not read)")
    if not {"tokenizer.json", "vocab.json", "spiece.model"} & set(found):
        missing.append("tokenizer.json")
    if missing:
        raise ConfigError(
            f"eval.clip `{name}`: there is no {', no '.join(missing)} in `{folder}`",
            "save model and processor with `save_pretrained`, then set eval.clip=FOLDER",
        )
    return folder


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, allow_patterns=list(_FILES))
    except HFValidationError as err:
        raise ConfigError(
            f"eval.clip `{name}` is no folder and no name on the Hugging Face hub",
            "use a name such as `openai/clip-vit-base-patch32`, or the path of a folder",
        ) from err
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[-1]
        raise ConfigError(
            f"eval.clip `{name}` cannot be fetched and is not on this machine: {reason}",
            "check the name and the network; or fetch it elsewhere with `hf download NAME "
            "--local-dir DIR` and set eval.clip=DIR; or leave eval.clip empty",
        ) from err


def fingerprint(name: str) -> str:
    """Return what identifies a model without loading it: a folder's content, or a hub name."""
    if not os.path.isdir(name):
        return f"clip-{name}"
    stats = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(name))
    return f"clip-{_hash(name, manifest.fingerprint(stats))}"


@functools.cache
def _hash(folder: str, _version: str) -> str:
    return content_hash(folder)[:16]


class Clip:
    """A loaded model in float32."""

    def __init__(self, name: str, device: str) -> None:
        """Raises ConfigError when the model is none that embeds pictures and texts."""
        from transformers import AutoModel, AutoTokenizer

        folder = locate(name)
        try:
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="float32"
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            with open(os.path.join(folder, "preprocessor_config.json"), "rb") as file:
                self._how = Preprocessing.of(json.load(file))
        except (OSError, ValueError, KeyError, ImportError) as err:
            reason = (str(err).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"eval.clip `{name}` cannot be read: {type(err).__name__}: {reason}",
                "the folder is damaged or incomplete: fetch or save the model again",
            ) from err
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ConfigError(
                f"eval.clip `{name}` is a {model.config.model_type!r} model, which does not embed "
                "pictures and texts alike",
                "use a CLIP such as `openai/clip-vit-base-patch32`",
            )
        self._model: Any = model.to(device).eval().requires_grad_(False)
        self._tokenizer: Any = tokenizer
        self._device = device
        self._most = int(model.config.text_config.max_position_embeddings)

    def images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return unit vectors (n, d) of uint8 (h, w, c) pictures."""
        import torch

        pixels = torch.from_numpy(np.stack([self._how(image) for image in images]))
        with torch.no_grad():
            return _unit(self._model.get_image_features(pixel_values=pixels.to(self._device)))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (n, d) of texts, cut off at the model's length."""
        import torch

        tokens = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._most,
            return_tensors="pt",
        ).to(self._device)
        with torch.no_grad():
            return _unit(self._model.get_text_features(**tokens))


def _unit(found: Any) -> np.ndarray:
    rows = getattr(found, "pooler_output", found).float().cpu().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Preprocessing:
    """What a `preprocessor_config.json` says, on Pillow: transformers' own needs torchvision."""

    def __init__(self, side: int | tuple[int, int], crop: tuple[int, int] | None, how: int) -> None:
        self._side, self._crop, self._how = side, crop, Image.Resampling(how)
        self._mean = np.zeros(3, np.float32)
        self._std = np.ones(3, np.float32)

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Preprocessing":
        """Read a config. Raises KeyError or ValueError for one that says nothing of sizes."""
        size, crop = config["size"], config.get("crop_size")
        if isinstance(size, dict):
            size = size.get("shortest_edge") or (size["height"], size["width"])
        if isinstance(crop, dict):
            crop = (crop["height"], crop["width"])
        elif isinstance(crop, int):
            crop = (crop, crop)
        crop = crop if config.get("do_center_crop", True) else None
        made = cls(size, crop, config.get("resample", Image.Resampling.BICUBIC))
        if config.get("do_normalize", True):
            made._mean = np.asarray(config["image_mean"], np.float32)
            made._std = np.asarray(config["image_std"], np.float32)
        return made

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return float32 (3, h, w) of uint8 (h, w, c)."""
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
        picture = picture.resize(self._resized(*picture.size), self._how)
        if self._crop is not None:
            picture = _centre(picture, *self._crop)
        pixels = np.asarray(picture, np.float32) / 255
        return ((pixels - self._mean) / self._std).transpose(2, 0, 1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if not isinstance(self._side, int):
            return self._side[1], self._side[0]
        short, long = sorted((width, height))
        longer = int(self._side * long / short)
        return (self._side, longer) if width <= height else (longer, self._side)


def _centre(picture: Image.Image, height: int, width: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
