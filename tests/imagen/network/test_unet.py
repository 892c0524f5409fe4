import copy
import dataclasses

import pytest
import torch

from imagen.network.conditions import Conditions
from imagen.network.features import FEATURES, sinusoids
from imagen.network.unet import build, resize

replace = dataclasses.replace
close = torch.testing.assert_close


def test_a_fresh_network_predicts_zero_in_the_shape_of_its_input(config, inputs):
    x, given = inputs(config)
    out = build(config)(x, given)
    assert out.shape == x.shape
    assert not out.any()


def test_gradient_reaches_every_parameter(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    net(x, replace(given, keep=torch.tensor([1.0, 0.0, 1.0]))).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["base", "efficient", "everything", "everything_base"])
def test_padding_tokens_change_nothing(configs, name, inputs, awake):
    net, (x, given) = awake(configs[name]), inputs(configs[name])
    emb = torch.cat([given.text_emb, torch.randn(3, 50, 12) * 100], dim=1)
    mask = torch.nn.functional.pad(given.text_mask, (0, 50))
    close(net(x, replace(given, text_emb=emb, text_mask=mask)), net(x, given), atol=1e-5, rtol=0)


def test_an_image_does_not_depend_on_the_batch_it_is_in(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    alone = {f.name: getattr(given, f.name) for f in dataclasses.fields(Conditions)}
    alone = {name: None if value is None else value[1:2] for name, value in alone.items()}
    close(net(x[1:2], Conditions(**alone)), net(x, given)[1:2], atol=1e-5, rtol=0)


def test_each_input_matters_to_its_own_image_only(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    before = net(x, given)
    for name in ["x", *(f.name for f in dataclasses.fields(Conditions))]:
        value = x if name == "x" else getattr(given, name)
        if value is None or (name == "keep" and not (config.text_dim or config.num_classes)):
            continue  # not an input of this network
        other = value.clone()
        other[1] = {"keep": 0, "label": 1 + value[1]}.get(name, value[1].flip(-1))
        after = net(*((other, given) if name == "x" else (x, replace(given, **{name: other}))))
        assert (before[1] - after[1]).abs().max() > 1e-4, name
        close(before[[0, 2]], after[[0, 2]], atol=1e-6, rtol=0)


def test_dropped_text_and_labels_are_the_same_for_every_prompt(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    dropped = replace(given, keep=torch.zeros(3))
    other = dropped
    if config.text_dim:
        other = replace(other, text_emb=given.text_emb + 1, text_mask=~given.text_mask)
    if config.num_classes:
        other = replace(other, label=given.label + 1)
    close(net(x, dropped), net(x, other), atol=1e-5, rtol=0)


def test_without_keep_everything_is_seen(config, inputs, awake):
    net, (x, given) = awake(config), inputs(config)
    assert torch.equal(net(x, replace(given, keep=None)), net(x, given))


def test_word_order_reaches_the_picture_only_through_the_embeddings(configs, inputs, awake):
    net, (x, given) = awake(configs["base"]), inputs(configs["base"])
    given.text_mask[:] = True
    swapped = replace(given, text_emb=given.text_emb.flip(1))
    close(net(x, given), net(x, swapped), atol=1e-5, rtol=0)


def test_height_and_width_are_alike(config, inputs, awake):
    """Transposed kernels make of transposed inputs the transposed picture."""
    net, (x, given) = awake(config), inputs(config, size=(8, 16))
    turned = copy.deepcopy(net)
    for parameter in turned.parameters():
        parameter.data = parameter.data.mT.clone() if parameter.ndim == 4 else parameter.data
    images = {name: getattr(given, name) for name in ("lowres", "x0_previous", "image")}
    images = {name: image.mT for name, image in images.items() if image is not None}
    out = net(x, given)
    assert out.shape == x.shape
    close(turned(x.mT, replace(given, **images)).mT, out, atol=1e-4, rtol=0)


def test_no_previous_estimate_is_an_estimate_of_zero(configs, inputs, awake):
    net, (x, given) = awake(configs["everything"]), inputs(configs["everything"])
    zero, none = (replace(given, x0_previous=p) for p in (torch.zeros_like(x), None))
    assert torch.equal(net(x, zero), net(x, none))
    assert not torch.allclose(net(x, given), net(x, none))


def test_a_conditioning_image_is_resized_without_aliasing():
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32, 32)
    # away from the border a fine pattern becomes its mean, not one of its two values
    close(resize(stripes, (8, 8))[..., 1:-1], torch.full((1, 1, 8, 6), 0.5), atol=0.02, rtol=0)
    assert resize(stripes, (32, 32)) is stripes


def test_dropout_works_in_training_and_rests_in_evaluation(configs, inputs, awake):
    net, (x, given) = awake(replace(configs["base"], dropout=0.5)), inputs(configs["base"])
    assert torch.equal(net(x, given), net(x, given))
    net.train()
    assert not torch.equal(net(x, given), net(x, given))


def test_features_tell_near_logsnr_apart():
    features = sinusoids(torch.tensor([-15.0, -14.9, 0.0, 15.0]))
    assert features.shape == (4, FEATURES)
    assert (features[0] - features[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["base", "efficient", "everything"])
def test_state_dict_keys_are_frozen(configs, name, golden_text):
    golden_text(f"unet_{name}_keys.txt", "\n".join(build(configs[name]).state_dict()) + "\n")
