import dataclasses

import pytest
import torch

from imagen.errors import ConfigError
from imagen.network.config import UNetConfig, kernel_widths
from imagen.network.unet import build

NO = (False, False)
CHANGES = {  # of each field, a value that is not the one of `base`
    "kind": "efficient",
    "channels": 4,
    "widths": (8, 24),
    "blocks": (1, 1),
    "self_attention": (True, True),
    "cross_attention": (True, False),
    "text_dim": 13,
    "cond_dim": 24,
    "head_dim": 4,
    "dropout": 0.5,
    "text_in_self_attention": False,
    "linear_attention": (True, False),
    "middle_attention": True,
    "attention_depth": 2,
    "feed_forward": 2,
    "global_context": True,
    "stem_kernels": (3, 7, 15),
    "downsample_kernels": (2, 4),
    "upsample": "pixel_shuffle",
    "combine_levels": True,
    "text_latents": 3,
    "self_conditioning": True,
    "image_channels": 1,
    "num_classes": 4,
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(UNetConfig)])
def test_every_option_changes_the_parameters_or_the_output(field, configs, inputs, awake):
    base = configs["base"]
    assert CHANGES[field] != getattr(base, field)
    changed = dataclasses.replace(base, **{field: CHANGES[field]})
    nets = awake(base).train(), awake(changed).train()
    shapes = [{name: p.shape for name, p in net.named_parameters()} for net in nets]
    if shapes[0] == shapes[1]:
        out = [net(*inputs(config)) for net, config in zip(nets, (base, changed), strict=True)]
        assert not torch.allclose(out[0], out[1], atol=1e-3)


PAPER = {
    "base64": UNetConfig(
        kind="base", widths=(512, 1024, 1536, 2048), blocks=(3, 3, 3, 3), text_dim=4096,
        self_attention=(False, True, True, True), cross_attention=(False, True, True, True),
        cond_dim=2048,
    ),
    "sr256": UNetConfig(
        kind="efficient", widths=(128, 256, 512, 1024), blocks=(2, 4, 8, 8), text_dim=4096,
        self_attention=(False, False, False, True), cross_attention=(False, False, False, True),
        cond_dim=512,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), [("base64", (1.5, 2.5)), ("sr256", (0.4, 0.8))])
def test_networks_of_the_papers_size_are_built_without_memory(name, billions):
    with torch.device("meta"):
        net = build(PAPER[name])
    assert billions[0] < sum(p.numel() for p in net.parameters()) / 1e9 < billions[1]


def test_every_option_is_built_without_memory(config):
    with torch.device("meta"):
        net = build(config)
    assert all(p.is_meta for p in net.parameters())
    real = build(config).state_dict()
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in real.items()
    }


def test_kernels_share_the_channels_by_halves():
    assert kernel_widths(32, (3,)) == [32]
    assert kernel_widths(32, (3, 7, 15)) == [16, 8, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1,)}, "blocks has 1 entries, widths has 2"),
        ({"linear_attention": (True,)}, "linear_attention has 1 entries, widths has 2"),
        ({"widths": (8, 12)}, "width 12 is no multiple of head_dim 8"),
        ({"blocks": (0, 1)}, "one block in each"),
        ({"widths": (), "blocks": (), "self_attention": (), "cross_attention": ()}, "one level"),
        ({"widths": (8, 72)}, "width 72 cannot be cut into groups"),
        ({"widths": (2, 8), "cross_attention": (False, True)}, "width 2 cannot be cut into groups"),
        ({"cond_dim": 200}, "cond_dim 200 cannot be cut into 3 heads"),
        ({"head_dim": 0}, "head_dim 0 is less than 1"),
        ({"channels": 0}, "channels 0 is less than 1"),
        ({"attention_depth": 0}, "attention_depth 0 is less than 1"),
        ({"text_dim": -1}, "text_dim -1 is less than 0"),
        ({"num_classes": -1}, "num_classes -1 is less than 0"),
        ({"dropout": 2.0}, r"dropout 2.0 is not in \[0, 1\)"),
        ({"kind": "sr"}, "kind 'sr' is neither"),
        ({"upsample": "bilinear"}, "upsample 'bilinear' is neither"),
        ({"stem_kernels": (3, 4)}, r"stem_kernels \(3, 4\) are not all odd"),
        ({"stem_kernels": ()}, r"stem_kernels \(\) has no kernel"),
        ({"downsample_kernels": (1, 2)}, r"downsample_kernels \(1, 2\) has .* too small"),
        ({"stem_kernels": (3, 5, 7, 9, 11)}, "are too many for 8 channels"),
        ({"text_dim": 0}, r"cross_attention without text \(text_dim 0\)"),
        ({"text_dim": 0, "cross_attention": NO, "text_latents": 2}, "where no attention sees text"),
        ({"self_attention": NO, "text_in_self_attention": False}, "self_attention false without"),
        ({"linear_attention": (False, True)}, "level 1, which has self_attention already"),
        ({"self_attention": NO, "cross_attention": NO, "feed_forward": 2}, "without attention"),
        ({"self_attention": NO, "cross_attention": NO, "attention_depth": 2}, "without attention"),
        ({"widths": (8, 12), "self_attention": NO, "cross_attention": NO, "middle_attention": True},
         "width 12 is no multiple of head_dim 8"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_built_is_refused(configs, change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(configs["base"], **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combine_levels": True}, "combine_levels with one level"),
        ({"upsample": "pixel_shuffle"}, "where nothing is upsampled"),
        ({"downsample_kernels": (2, 4)}, "where nothing is downsampled"),
    ],
)
def test_options_that_would_do_nothing_are_refused(configs, change, message):
    one = {"widths": (8,), "blocks": (1,), "self_attention": (True,), "cross_attention": (True,)}
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(configs["base"], **one | change)
