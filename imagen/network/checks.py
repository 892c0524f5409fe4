"""Do inputs fit a network? Shapes and types only, which ask nothing of the device."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, int64
from torch import bool as torch_bool

from imagen.errors import ConfigError
from imagen.network.conditions import Conditions
from imagen.network.config import UNetConfig
from imagen.network.features import FEATURES


class Expected(NamedTuple):
    """What one condition must be; `option` of the config decides whether it is due."""

    option: str
    shape: tuple[int | None, ...]
    type: str = "floating point"
    optional: bool = False


def expected(config: UNetConfig, x: Tensor) -> Mapping[str, Expected]:
    """Return what each condition must be for a network and its `x` (b, c, h, w)."""
    b, length = x.shape[0], None
    return {
        "time": Expected("cond_dim", (b, FEATURES)),
        "text_emb": Expected("text_dim", (b, length, config.text_dim)),
        "text_mask": Expected("text_dim", (b, length), "bool"),
        "lowres": Expected("kind", tuple(x.shape)),
        "aug": Expected("kind", (b, FEATURES)),
        "x0_previous": Expected("self_conditioning", tuple(x.shape), optional=True),
        "image": Expected("image_channels", (b, config.image_channels, None, None)),
        "label": Expected("num_classes", (b,), "int64"),
    }


def check(config: UNetConfig, x: Tensor, given: Conditions) -> None:
    """Raise ConfigError unless `x` and its conditions fit the network."""
    _check_x(config, x)
    for name, wanted in expected(config, x).items():
        value = getattr(given, name)
        option = getattr(config, wanted.option)
        due = option == "efficient" if wanted.option == "kind" else bool(option)
        if value is not None and not due:
            raise ConfigError(
                f"{name} is given to a U-Net with {wanted.option} {option}, which cannot take it"
            )
        if value is None and due and not wanted.optional:
            raise ConfigError(
                f"{name} is missing, which a U-Net with {wanted.option} {option} needs"
            )
        if value is not None:
            _check_value(name, value, wanted)
    _check_together(x, given)


def _check_x(config: UNetConfig, x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != config.channels:
        raise ConfigError(
            f"x has shape {tuple(x.shape)}, not (b, {config.channels}, h, w)",
            f"this network makes images of {config.channels} channels",
        )
    if not x.is_floating_point():
        raise ConfigError(f"x is {x.dtype}, not floating point", "images are float in [-1, 1]")
    height, width = x.shape[2:]
    if height % config.factor or width % config.factor:
        raise ConfigError(
            f"x is {height} x {width} pixels: not both are multiples of {config.factor}",
            f"a {config.kind} U-Net of {len(config.widths)} levels halves so often",
        )


def _check_value(name: str, value: Tensor, wanted: Expected) -> None:
    fits = value.ndim == len(wanted.shape) and all(
        want in (None, size) for size, want in zip(value.shape, wanted.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("any" if size is None else str(size) for size in wanted.shape)
        raise ConfigError(
            f"{name} has shape {tuple(value.shape)}, not ({shape})",
            "text_dim must be the width of the text encoder" if name == "text_emb" else None,
        )
    right = {
        "floating point": value.is_floating_point(),
        "bool": value.dtype == torch_bool,
        "int64": value.dtype == int64,
    }
    if not right[wanted.type]:
        raise ConfigError(f"{name} is {value.dtype}, not {wanted.type}")


def _check_together(x: Tensor, given: Conditions) -> None:
    emb, mask = given.text_emb, given.text_mask
    if emb is not None and mask is not None and emb.shape[1] != mask.shape[1]:
        raise ConfigError(f"text_emb has {emb.shape[1]} tokens, text_mask {mask.shape[1]}")
    if given.keep is not None and given.keep.shape != x.shape[:1]:
        raise ConfigError(f"keep has shape {tuple(given.keep.shape)}, not ({x.shape[0]},)")
