"""Refuse training batches that a member cannot mean: wrong shape, type, range or fields.

Images and noise are float32; times and levels are float64, in which schedules compute. Training in
bfloat16 takes the same batches: autocast casts. Values are read, so this waits for a GPU: training
calls it once, not in every step.
"""

import reprlib
import warnings
from collections.abc import Iterator

import torch

from imagen.batch import Text, TrainBatch
from imagen.errors import ConfigError
from imagen.network.config import UNetConfig

_TOLERANCE = 1e-3
"""How far images may leave [-1, 1]: summation, not another range."""
_MANY, _NEAR = 8, 0.05
"""Images without a value below 0, and how near to 0 and to 1 they come, that look like [0, 1]."""


def check(network: UNetConfig, shape: tuple[int, int], batch: TrainBatch) -> None:
    """Raise ConfigError unless a training batch fits a network and its images' (h, w)."""
    _check_x0(network, shape, batch)
    b = len(batch.x0)
    _tensor("eps", batch.eps, tuple(batch.x0.shape))
    _tensor("t", batch.t, (b,), torch.float64)
    if not ((batch.t > 0) & (batch.t < 1)).all():
        raise ConfigError(f"batch.t has {spread(batch.t)}, times of training are in (0, 1)")
    _flags("keep", batch.keep, b)
    _check_text(network, batch.text, b)
    for name, wanted, reason in _optional(network):
        _presence(name, getattr(batch, name) is not None, wanted, reason)
    _check_lowres(batch, b)
    _check_label(network, batch.label, b)
    if batch.image is not None:
        check_range("batch.image", batch.image)
        sizes = tuple(batch.image.shape[2:])
        _tensor("image", batch.image, (b, network.image_channels, *sizes))
    if batch.self_cond is not None:
        _flags("self_cond", batch.self_cond, b)


def check_type(name: str, value: object, kind: type, what: str) -> None:
    """Raise ConfigError unless `value` is of a kind; True and False are no numbers."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name} is {reprlib.repr(value)} ({type(value).__name__}), not {what}")


def check_range(name: str, images: torch.Tensor) -> None:
    """Raise ConfigError unless images are finite floats in [-1, 1]; `name` is for the message."""
    _check_tensor(name, images)
    if not images.numel():
        raise ConfigError(f"{name} is {tuple(images.shape)}, which is empty")
    if not images.is_floating_point():
        raise ConfigError(
            f"{name} is {dtype_of(images)}, images are floats in [-1, 1]",
            "uint8 pixels become such by imagen.data.images.to_x0",
        )
    if not images.isfinite().all():
        raise ConfigError(f"{name} has values that are not finite")
    if images.abs().max() > 1 + _TOLERANCE:
        byte_like = images.min() >= 0 and images.max() > 2
        raise ConfigError(
            f"{name} has {spread(images)}, images are in [-1, 1]",
            "these look like bytes: x / 127.5 - 1" if byte_like else "scale or clip them",
        )


def _check_x0(network: UNetConfig, shape: tuple[int, int], batch: TrainBatch) -> None:
    x0 = batch.x0
    check_range("batch.x0", x0)
    whole = f"(b, {network.channels}, {shape[0]}, {shape[1]})"
    if x0.ndim != 4 or not len(x0) or x0.shape[1] != network.channels:
        raise ConfigError(f"batch.x0 is {tuple(x0.shape)}, the member's images are {whole}")
    size = tuple(x0.shape[2:])
    crop = network.kind == "efficient"
    fits = all(
        0 < s <= most and s % network.factor == 0 for s, most in zip(size, shape, strict=True)
    )
    if size != shape and not (crop and fits):
        crops = f", or crops of them in multiples of {network.factor} pixels" if crop else ""
        raise ConfigError(f"batch.x0 is {tuple(x0.shape)}, the member's images are {whole}{crops}")
    _check_dtype("x0", x0, torch.float32)
    if len(x0) >= _MANY and 0 <= x0.min() < _NEAR and x0.max() > 1 - _NEAR:
        warnings.warn(
            f"batch.x0 has {spread(x0)} in {len(x0)} images, where [-1, 1] is due: if they were "
            "made for [0, 1], give 2 * x - 1",
            stacklevel=2,
        )


def _optional(network: UNetConfig) -> Iterator[tuple[str, bool, str]]:
    """Yield field, whether the network takes it, and what decides that."""
    for name in ("lowres", "aug_level", "aug_eps"):
        yield name, network.kind == "efficient", f"network.kind is {network.kind!r}"
    yield "label", network.num_classes > 0, f"network.num_classes is {network.num_classes}"
    yield "image", network.image_channels > 0, f"network.image_channels is {network.image_channels}"
    conditioned = network.self_conditioning
    yield "self_cond", conditioned, f"network.self_conditioning is {conditioned}"


def _presence(name: str, there: bool, wanted: bool, reason: str) -> None:
    if there != wanted:
        what = "is missing" if wanted else "is given"
        raise ConfigError(f"batch.{name} {what}, but {reason}")


def _check_text(network: UNetConfig, text: Text | None, b: int) -> None:
    _presence(
        "text", text is not None, network.text_dim > 0, f"network.text_dim is {network.text_dim}"
    )
    if text is not None:
        check_text("batch.text", text, network.text_dim, b)


def check_text(name: str, text: Text, text_dim: int, b: int) -> None:
    """Raise ConfigError unless `text` has embeddings (b, l, text_dim) and their mask."""
    emb, mask = text.emb, text.mask
    if emb.ndim != 3 or len(emb) != b:
        raise ConfigError(f"{name}.emb is {tuple(emb.shape)}, not ({b}, l, {text_dim})")
    if emb.shape[2] != text_dim:
        raise ConfigError(
            f"{name}.emb is {emb.shape[2]} wide, network.text_dim is {text_dim}",
            "the embeddings are those of another text encoder",
        )
    if not isinstance(mask, torch.Tensor):
        raise ConfigError(f"{name}.mask is missing: which of {emb.shape[1]} tokens are padding?")
    if mask.dtype != torch.bool or mask.shape != emb.shape[:2]:
        raise ConfigError(
            f"{name}.mask is {dtype_of(mask)} {tuple(mask.shape)}, not bool {tuple(emb.shape[:2])}",
            "True = token, False = padding",
        )
    _finite(f"{name}.emb", emb)


def _check_lowres(batch: TrainBatch, b: int) -> None:
    lowres, level, eps = batch.lowres, batch.aug_level, batch.aug_eps
    if lowres is None or level is None or eps is None:
        return
    check_range("batch.lowres", lowres)
    h, w = batch.x0.shape[2:]
    _tensor("lowres", lowres, (*batch.x0.shape[:2], *lowres.shape[2:]))
    low_h, low_w = lowres.shape[2:]
    if low_h * w != low_w * h:
        raise ConfigError(
            f"batch.lowres is {low_h} x {low_w} pixels, x0 is {h} x {w}: another aspect ratio",
            "give both the same crop of a picture",
        )
    if low_h >= h:
        raise ConfigError(
            f"batch.lowres is {low_h} x {low_w} pixels, not smaller than x0, which is {h} x {w}",
            "lowres is at the size of the member before, x0 at the size of this one",
        )
    _tensor("aug_eps", eps, tuple(lowres.shape))
    _tensor("aug_level", level, (b,), torch.float64)
    if not ((level >= 0) & (level <= 1)).all():
        raise ConfigError(f"batch.aug_level has {spread(level)}, levels are in [0, 1]")


def _check_label(network: UNetConfig, label: torch.Tensor | None, b: int) -> None:
    if label is not None:
        check_labels("batch.label", label, network.num_classes, b)


def check_labels(name: str, label: torch.Tensor, num_classes: int, b: int) -> None:
    """Raise ConfigError unless `label` is (b,) int64 in [0, num_classes)."""
    _check_tensor(name, label)
    if label.dtype != torch.int64 or tuple(label.shape) != (b,):
        raise ConfigError(f"{name} is {dtype_of(label)} {tuple(label.shape)}, not int64 ({b},)")
    if label.min() < 0 or label.max() >= num_classes:
        raise ConfigError(f"{name} has {spread(label)}, classes are in [0, {num_classes})")


def _flags(name: str, value: torch.Tensor, b: int) -> None:
    _tensor(name, value, (b,), None)
    if not ((value == 0) | (value == 1)).all():
        raise ConfigError(f"batch.{name} has {spread(value)}, each is 0 or 1")


def _tensor(
    name: str,
    value: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Check shape, type (None: any floating point) and that all is finite."""
    _check_tensor(f"batch.{name}", value)
    if tuple(value.shape) != shape:
        raise ConfigError(f"batch.{name} is {tuple(value.shape)}, not {shape}")
    _check_dtype(name, value, dtype)
    _finite(f"batch.{name}", value)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise ConfigError(f"{name} is a {type(value).__name__}, not a torch tensor")


def _check_dtype(name: str, value: torch.Tensor, dtype: torch.dtype | None) -> None:
    if dtype is None and not value.is_floating_point():
        raise ConfigError(f"batch.{name} is {dtype_of(value)}, not floating point")
    if dtype is not None and value.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"batch.{name} is {dtype_of(value)}, not {wanted}", f"batch.{name}.to(torch.{wanted})"
        )


def _finite(name: str, value: torch.Tensor) -> None:
    if not value.isfinite().all():
        raise ConfigError(f"{name} has values that are not finite")


def dtype_of(value: torch.Tensor) -> str:
    """Return a tensor's type as messages say it."""
    return str(value.dtype).removeprefix("torch.")


def spread(value: torch.Tensor) -> str:
    """Return a tensor's range as messages say it."""
    return f"values from {value.min().item():g} to {value.max().item():g}"
