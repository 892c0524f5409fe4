"""Inputs of a member without values, and the autocast rules of a GPU without a GPU."""

import torch
from torch import nn

from imagen.batch import Given, Text, TrainBatch
from imagen.inputs import condition_lowres
from imagen.member import MemberConfig
from imagen.memory.usage import Setting
from imagen.network.config import UNetConfig
from imagen.network.unet import UNet, build

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def follow_cuda(net: nn.Module) -> None:
    """Let the norms of a network take, and so keep, float32 under a CPU's autocast.

    CUDA's autocast does so (PyTorch, `autocast_mode.h`, the float32 list), a CPU's does not, and it
    doubles what they keep. Softmax is on that list too; only linear attention would notice.
    """
    for module in net.modules():
        if isinstance(module, _NORMS):
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))


def autocast(setting: Setting) -> torch.autocast:
    """Return the autocast of the setting's precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16")


def build_without_values(config: UNetConfig) -> UNet:
    """Return a network on the meta device. A fake module could not take its memory layout."""
    with torch.device("meta"):
        return build(config)


def make_fake(net: nn.Module) -> None:
    """Replace weights and buffers on the meta device by fake ones; call it under fake tensors."""
    for module in net.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_like(weight)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _like(buffer))


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _text(config: MemberConfig, setting: Setting) -> Text | None:
    b, width = setting.images, config.network.text_dim
    if not width:
        return None
    mask = torch.ones(b, setting.tokens, dtype=torch.bool)
    return Text(torch.randn(b, setting.tokens, width), mask)


def _lowres(config: MemberConfig, setting: Setting, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return low-resolution images of a quarter of the size: what they weigh hardly counts."""
    if config.network.kind == "base":
        return None
    height, width = (max(1, side // 4) for side in shape)
    return torch.randn(setting.images, config.network.channels, height, width)


def _label(config: MemberConfig, setting: Setting) -> torch.Tensor | None:
    classes = config.network.num_classes
    return torch.zeros(setting.images, dtype=torch.int64) if classes else None


def _image(config: MemberConfig, setting: Setting) -> torch.Tensor | None:
    channels = config.network.image_channels
    return torch.randn(setting.images, channels, *config.shape) if channels else None


def train_batch(config: MemberConfig, setting: Setting) -> TrainBatch:
    """Return a microbatch of random values, on the default device (fake under fake tensors)."""
    b = setting.images
    shape = (setting.crop_px, setting.crop_px) if setting.crop_px else config.shape
    lowres = _lowres(config, setting, shape)
    x0 = torch.randn(b, config.network.channels, *shape)
    return TrainBatch(
        x0=x0,
        eps=torch.randn_like(x0),
        t=torch.rand(b, dtype=torch.float64),
        text=_text(config, setting),
        keep=torch.ones(b),
        lowres=lowres,
        aug_level=None if lowres is None else torch.rand(b, dtype=torch.float64),
        aug_eps=None if lowres is None else torch.randn_like(lowres),
        label=_label(config, setting),
        image=_image(config, setting),
        self_cond=torch.ones(b) if config.network.self_conditioning else None,
    )


def given(config: MemberConfig, setting: Setting) -> Given:
    """Return random values of what sampling conditions on."""
    lowres, up, aug = _lowres(config, setting, config.shape), None, None
    if lowres is not None:
        level = torch.rand(setting.images, dtype=torch.float64)
        up, aug = condition_lowres(lowres, level, torch.randn_like(lowres), config.shape)
    return Given(
        text=_text(config, setting),
        lowres=up,
        aug=aug,
        label=_label(config, setting),
        image=_image(config, setting),
    )
