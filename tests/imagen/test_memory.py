import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import bench_memory
from imagen.errors import ConfigError
from imagen.memory import Setting, sampling, sampling_curve, training, training_curve
from imagen.memory.fit import MOST_IMAGES, largest, usable, ways
from imagen.memory.tracker import Tracker
from imagen.network.unet import build
from imagen.presets import PRESETS

MB = 10**6
CPU = Setting(device="cpu")


def run(**keys):
    return Setting(device="cpu", **keys)


def test_the_tracker_sees_what_autograd_keeps_and_only_that():
    with FakeTensorMode():
        x = torch.empty(1000, requires_grad=True)
        with Tracker([x]) as tracker:
            y = x.exp()  # keeps its result
            z = y.sin()  # keeps y
            w = z.exp()  # keeps its result, so that nobody keeps z
            del y, z
            torch.empty(5000)
    peak = tracker.trace.at_peak()
    assert [(block.operation, block.num_bytes) for block in peak] == [
        ("exp", 4000), ("exp", 4000), ("empty", 20000),
    ]  # fmt: skip
    assert w.shape == (1000,)


def test_what_is_freed_no_longer_counts():
    with FakeTensorMode(), Tracker() as tracker:
        for _ in range(5):
            torch.empty(1000).exp_()
    assert [block.num_bytes for block in tracker.trace.at_peak()] == [4000]


def test_a_view_and_a_result_in_place_are_no_new_storage():
    with FakeTensorMode(), Tracker() as tracker:
        x = torch.empty(10, 10)
        x.t().add_(1)[2:].unsqueeze(0)
    assert len(tracker.trace.blocks) == 1


def test_weights_gradients_and_states_are_counted_exactly(toy):
    usage = training(toy.BASE, CPU)
    count = sum(weight.numel() for weight in build(toy.BASE.network).parameters())
    assert usage.parameters == count
    assert usage.weights == usage.gradients == usage.ema == 4 * count
    moments = usage.optimizer - 8 * count
    assert 0 < moments <= 4 * len(list(build(toy.BASE.network).parameters()))  # a step each


def test_adafactor_keeps_less_than_adam_and_needs_scratch(toy):
    adam = training(toy.BASE, CPU)
    factored = training(toy.BASE, run(optimizer="adafactor"))
    assert factored.optimizer < adam.optimizer
    assert adam.update < adam.weights / 100 < factored.update  # norms of gradients; copies
    assert factored.activations == adam.activations


@pytest.mark.slow
def test_a_curve_is_exactly_what_runs_of_any_size_give(toy):
    setting = run(tokens=9, precision="bf16", checkpoint_levels=(0, 1))
    curve, drawn = training_curve(toy.SR, setting), sampling_curve(toy.SR, setting)
    for images in (1, 32):
        of_size = dataclasses.replace(setting, images=images)
        assert curve.at(images) == training(toy.SR, of_size)
        assert drawn.at(images) == sampling(toy.SR, of_size)


@pytest.mark.slow
def test_every_option_of_a_setting_changes_the_estimate(toy):
    def usage(device="cpu", **keys):
        return training(toy.SR, Setting(device=device, **{"images": 16, **keys}))

    plain, half = usage(), usage(precision="bf16")
    assert usage(images=32).total > plain.total
    assert usage(tokens=256).total > plain.total
    assert usage(checkpoint_levels=(0, 1)).total < plain.total
    assert usage(crop_px=8).total < plain.total
    assert usage(optimizer="adafactor").total != plain.total
    assert half.activations < plain.activations
    assert half.casts == pytest.approx(half.weights / 2, rel=0.1)
    assert plain.casts == 0
    assert usage("cuda", precision="bf16").activations > half.activations  # norms are float32


@pytest.mark.slow
def test_members_with_every_input_are_estimated(toy):
    usage = training(toy.ALL, run(images=2))
    assert usage.activations > 0
    assert sampling(toy.ALL, run(images=2)).total < usage.total
    assert sampling(toy.BARE, run(images=2)).activations > 0


def test_the_largest_activation_is_named_by_module_and_shape(toy):
    block = training(toy.BASE, run(images=4, tokens=3)).largest
    assert block.module.split(".")[0] in ("down", "up", "middle", "final")
    assert block.num_bytes == 4 * torch.Size(block.shape).numel()
    assert str(block).startswith(f"{block.module} (")
    assert block.shape[0] == 4


def test_the_attention_matrix_is_named_where_attention_is_not_fused(toy, monkeypatch):
    def plain(q, k, v, attn_mask=None):
        scores = q @ k.transpose(-1, -2)
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain)
    network = {"self_attention": (True, True), "cross_attention": (False, False)}
    member = dataclasses.replace(toy.with_network(toy.BASE, **network), size=32)
    block = training(member, run(images=2, tokens=3)).largest
    assert "attention" in block.module
    pixels = 32 * 32
    assert block.shape[-2:] == (pixels, pixels + 3 + 1)


def test_guided_sampling_needs_twice_the_activations(toy):
    member = toy.BASE
    alone = dataclasses.replace(member.sampling, guidance_scale=1.0)
    guided = sampling(member, run(images=64)).activations
    plain = sampling(dataclasses.replace(member, sampling=alone), run(images=64)).activations
    assert guided / plain == pytest.approx(2, rel=0.1)


def test_the_largest_microbatch_just_fits(toy):
    curve = training_curve(toy.BASE, CPU)
    for images in (1, 5, 100):
        assert largest(curve, curve.at(images).total) == images
        assert largest(curve, curve.at(images).total - 1) == images - 1
    assert largest(curve, 10**15) == MOST_IMAGES
    assert largest(curve, 0) == 0


def test_a_card_keeps_room_for_what_is_not_counted():
    assert usable(24) == int(0.9 * 24 * 2**30) - 2**29
    with pytest.raises(ConfigError, match=r"card of -3 GB is not in \[1, 1024\]"):
        usable(-3)


def test_the_ways_to_train_are_all_combinations(toy):
    settings = list(ways(toy.SR, run(tokens=5)))
    assert len(set(settings)) == 8
    assert {setting.checkpoint_levels for setting in settings} == {(), (0, 1)}
    assert {setting.tokens for setting in settings} == {5}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": -1}, r"images -1 is less than 1"),
        ({"tokens": 0}, r"tokens 0 is less than 1"),
        ({"crop_px": -8}, r"crop_px -8 is less than 0"),
        ({"precision": "fp16"}, r"precision 'fp16' is none of fp32, bf16"),
        ({"optimizer": "sgd"}, r"optimizer 'sgd' is none of adamw, adafactor"),
        ({"device": "tpu"}, r"device 'tpu' is none of cuda, cpu"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        Setting(**keys)


def test_a_setting_that_does_not_fit_the_member_is_refused(toy):
    with pytest.raises(ConfigError, match=r"checkpoint level 2 is not in \[0, 2\)"):
        training(toy.BASE, Setting(checkpoint_levels=(2,)))
    with pytest.raises(ConfigError, match="crop_px 8: a base member is trained on whole images"):
        training(toy.BASE, Setting(crop_px=8))
    for crop in (6, 20):
        with pytest.raises(ConfigError, match=f"crop_px {crop} is no multiple of 4 up to 16"):
            training(toy.SR, Setting(crop_px=crop))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "base training, fp32",
        "sr training, fp32, all levels checkpointed",
        "sr sampling, fp32",
    ],
)
def test_the_estimate_is_within_20_percent_of_the_measured_peak(name):
    estimated = bench_memory.estimate(bench_memory.CASES[name], "cpu")
    measured = bench_memory.measure_apart(name, bench_memory.ENVIRONMENT)["bytes"]
    assert measured > 200 * MB, "constants would matter"
    assert estimated == pytest.approx(measured, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "card_gb"), [("base64-s", 12), ("sr256-m", 24), ("base64", 80)])
def test_a_preset_trains_on_its_card_with_8_images_at_a_time(name, card_gb):
    preset = PRESETS[name]
    setting = Setting(images=8, precision="bf16", crop_px=preset.crop_px)
    usage = training(preset.member, setting)
    assert usage.parameters == preset.parameters
    assert usage.fixed == pytest.approx(20 * preset.parameters, rel=1e-4)  # Adam's 16 and EMA
    assert usage.fixed < usage.total < usable(card_gb)
