import dataclasses

import pytest
import torch

from imagen.errors import ConfigError
from imagen.network.features import FEATURES, sinusoids
from imagen.network.unet import UNetConfig, build

BASE = UNetConfig(
    kind="base", channels=1, widths=(8, 16), blocks=(1, 2), self_attention=(False, True),
    cross_attention=(True, True), text_dim=12, cond_dim=16, head_dim=8,
)  # fmt: skip
SR = dataclasses.replace(BASE, kind="efficient")


def inputs(config, b=3, size=8, tokens=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (b, config.channels, size, size)
    lowres = config.kind == "efficient"
    return {
        "x": torch.randn(shape, generator=g),
        "time": sinusoids(torch.randn(b, generator=g)),
        "text_emb": torch.randn(b, tokens, config.text_dim, generator=g),
        "text_mask": torch.arange(tokens) < torch.tensor([tokens, 2, 1])[:b, None],
        "keep": torch.ones(b),
        "lowres": torch.randn(shape, generator=g) if lowres else None,
        "aug": sinusoids(torch.randn(b, generator=g)) if lowres else None,
    }


def awake(config):
    """A network whose zero-initialised layers are random, so that every input matters."""
    torch.manual_seed(0)
    net = build(config).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("config", [BASE, SR, dataclasses.replace(SR, channels=3)])
def test_a_fresh_network_predicts_zero_in_the_shape_of_its_input(config):
    given = inputs(config)
    out = build(config)(**given)
    assert out.shape == given["x"].shape
    assert not out.any()


@pytest.mark.parametrize("config", [BASE, SR])
def test_gradient_reaches_every_parameter(config):
    net = awake(config)
    given = inputs(config) | {"keep": torch.tensor([1.0, 0.0, 1.0])}
    net(**given).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("config", [BASE, SR])
def test_padding_tokens_change_nothing(config):
    net, given = awake(config), inputs(config)
    padded = dict(given)
    padded["text_emb"] = torch.cat([given["text_emb"], torch.randn(3, 50, 12) * 100], dim=1)
    padded["text_mask"] = torch.nn.functional.pad(given["text_mask"], (0, 50))
    torch.testing.assert_close(net(**padded), net(**given), atol=1e-5, rtol=0)


COMMON = ["x", "time", "text_emb", "keep"]


@pytest.mark.parametrize(
    ("config", "change"),
    [(BASE, name) for name in COMMON] + [(SR, name) for name in [*COMMON, "lowres", "aug"]],
)
def test_each_input_matters_to_its_own_image_only(config, change):
    net, given = awake(config), inputs(config)
    changed = given | {change: given[change].clone()}
    changed[change][1] = 0 if change == "keep" else changed[change][1].flip(-1)
    before, after = net(**given), net(**changed)
    assert (before[1] - after[1]).abs().max() > 1e-4
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [BASE, SR])
def test_dropped_text_is_the_same_for_every_prompt(config):
    net, given = awake(config), inputs(config)
    dropped = given | {"keep": torch.zeros(3)}
    other = dropped | {"text_emb": given["text_emb"] + 1, "text_mask": ~given["text_mask"]}
    torch.testing.assert_close(net(**dropped), net(**other), atol=1e-5, rtol=0)


def test_word_order_reaches_the_picture_only_through_the_embeddings():
    net, given = awake(BASE), inputs(BASE)
    given["text_mask"][:] = True
    swapped = given | {"text_emb": given["text_emb"].flip(1)}
    torch.testing.assert_close(net(**given), net(**swapped), atol=1e-5, rtol=0)


def test_dropout_works_in_training_and_rests_in_evaluation():
    net, given = awake(dataclasses.replace(BASE, dropout=0.5)), inputs(BASE)
    assert torch.equal(net(**given), net(**given))
    net.train()
    assert not torch.equal(net(**given), net(**given))


def test_features_tell_near_logsnr_apart():
    features = sinusoids(torch.tensor([-15.0, -14.9, 0.0, 15.0]))
    assert features.shape == (4, FEATURES)
    assert (features[0] - features[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1,)}, "blocks has 1 entries, widths has 2"),
        ({"widths": (8, 12)}, "width 12 is no multiple of head_dim 8"),
        ({"blocks": (0, 1)}, "one block in each"),
        ({"widths": (), "blocks": (), "self_attention": (), "cross_attention": ()}, "one level"),
        ({"widths": (8, 72)}, "width 72 cannot be cut into groups"),
        ({"widths": (2, 8), "cross_attention": (False, True)}, "width 2 cannot be cut into groups"),
        ({"cond_dim": 200}, "cond_dim 200 cannot be cut into 3 heads"),
        ({"head_dim": 0}, "head_dim 0 is less than 1"),
        ({"channels": 2}, "channels 2 is neither 1"),
        ({"dropout": 2.0}, r"dropout 2.0 is not in \[0, 1\)"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **change)


@pytest.mark.parametrize(("config", "golden"), [(BASE, "unet_base"), (SR, "unet_efficient")])
def test_state_dict_keys_are_frozen(config, golden, golden_text):
    golden_text(f"{golden}_keys.txt", "\n".join(build(config).state_dict()) + "\n")
