import contextlib
import dataclasses

import pytest
import torch

from imagen.errors import ConfigError
from imagen.member import Text, check_batch


def changed(toy, name, **keys):
    batch = toy.train_batch(getattr(toy, name))
    return dataclasses.replace(batch, **{k: v(batch) for k, v in keys.items()})


def poisoned(tensor, value=torch.nan):
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


def text_with(toy, **keys):
    words = toy.text(4)
    return Text(**{"emb": words.emb, "mask": words.mask} | keys)


@pytest.mark.parametrize("name", ["BASE", "SR", "ALL", "BARE"])
def test_batches_that_fit_pass(toy, name):
    check_batch(getattr(toy, name), toy.train_batch(getattr(toy, name)))


def test_aligned_crops_pass(toy):
    batch = toy.train_batch(toy.SR)
    crops = {key: getattr(batch, key)[..., 4:12, :8] for key in ("x0", "eps")}
    crops |= {key: getattr(batch, key)[..., 2:6, :4] for key in ("lowres", "aug_eps")}
    check_batch(toy.SR, dataclasses.replace(batch, **crops))


X0 = [
    (lambda b: (b.x0 + 1).to(torch.uint8), r"x0 is uint8, .*floats (.|\n)*hint: .*to_x0"),
    (lambda b: b.x0 * 127.5 + 127.5, r"x0 has values from .* to 25\d(.|\n)*like bytes"),
    (lambda b: b.x0 * 3, r"x0 has values from -[\d.]+ to [\d.]+, .*\n\nhint: scale or clip"),
    (lambda b: poisoned(b.x0), "x0 has values that are not finite"),
    (lambda b: b.x0.numpy(), "x0 is a ndarray, not a torch tensor"),
    (lambda b: b.x0[0], r"x0 is \(1, 8, 8\), the member's images are \(b, 1, 8, 8\)"),
    (lambda b: b.x0.repeat(1, 3, 1, 1), r"x0 is \(4, 3, 8, 8\), .*\(b, 1, 8, 8\)"),
    (lambda b: b.x0[..., :4], r"x0 is \(4, 1, 8, 4\), .*\(b, 1, 8, 8\)$"),
    (lambda b: b.x0[:0], r"x0 is \(0, 1, 8, 8\), which is empty"),
]  # fmt: skip
OTHERS = [
    ("BASE", "eps", lambda b: b.eps[:, :, :4], r"eps is \(4, 1, 4, 8\), not \(4, 1, 8, 8\)"),
    ("BASE", "eps", lambda b: poisoned(b.eps), "eps has values that are not finite"),
    ("BASE", "t", lambda b: poisoned(b.t, 0.0), r"t has values from 0 to 0.9, .*in \(0, 1\)"),
    ("BASE", "t", lambda b: b.t * 1000, r"t has values from 100 to 900"),
    ("BASE", "t", lambda b: (b.t * 1000).long(), "t is int64, not float64"),
    ("BASE", "t", lambda b: b.t.float(), r"t is float32, not float64\n\nhint: batch.t.to\(torch.f"),
    ("BASE", "t", lambda b: b.t.numpy(), "batch.t is a ndarray, not a torch tensor"),
    ("BASE", "x0", lambda b: b.x0.bfloat16(), "x0 is bfloat16, not float32"),
    ("BASE", "x0", lambda b: b.x0.double(), r"x0 is float64, not float32\n\nhint: batch.x0.to"),
    ("BASE", "eps", lambda b: b.eps.half(), "eps is float16, not float32"),
    ("SR", "lowres", lambda b: b.lowres.double(), "lowres is float64, not float32"),
    ("SR", "aug_eps", lambda b: b.aug_eps.bfloat16(), "aug_eps is bfloat16, not float32"),
    ("SR", "aug_level", lambda b: b.aug_level.float(), "aug_level is float32, not float64"),
    ("ALL", "image", lambda b: b.image.double(), "image is float64, not float32"),
    ("ALL", "label", lambda b: b.label.tolist(), "label is a list, not a torch tensor"),
    ("BASE", "keep", lambda b: b.keep.bool(), "keep is bool, not floating point"),
    ("BASE", "t", lambda b: b.t[:, None], r"t is \(4, 1\), not \(4,\)"),
    ("BASE", "keep", lambda b: b.keep * 0.5, "keep has values from 0.5 to 0.5, each is 0 or 1"),
    ("BASE", "text", lambda _: None, "text is missing, but network.text_dim is 12"),
    ("BARE", "text", lambda b: Text(b.x0, b.x0), "text is given, but network.text_dim is 0"),
    ("BASE", "lowres", lambda b: b.x0, "lowres is given, but network.kind is 'base'"),
    ("SR", "lowres", lambda _: None, "lowres is missing, but network.kind is 'efficient'"),
    ("SR", "aug_level", lambda _: None, "aug_level is missing"),
    ("SR", "aug_eps", lambda _: None, "aug_eps is missing"),
    ("SR", "lowres", lambda b: b.lowres * 100, r"lowres has values from .*\[-1, 1\]"),
    ("SR", "lowres", lambda b: b.lowres[..., :4], "lowres is 8 x 4 .*16 x 16: another aspect"),
    ("SR", "lowres", lambda b: b.x0.repeat(1, 1, 2, 2), "lowres is 32 x 32 .*, not smaller than"),
    ("SR", "lowres", lambda b: b.x0, "lowres is 16 x 16 pixels, not smaller than x0, .* 16 x 16"),
    ("SR", "lowres", lambda b: b.lowres[:2], r"lowres is \(2, 1, 8, 8\), not \(4, 1, 8, 8\)"),
    ("SR", "aug_level", lambda b: b.aug_level * 2, r"aug_level has values from 0 to 2, .*\[0, 1\]"),
    ("SR", "aug_eps", lambda b: b.eps, r"aug_eps is \(4, 1, 16, 16\), not \(4, 1, 8, 8\)"),
    ("SR", "x0", lambda b: b.x0[..., :6], "or crops of them in multiples of 4 pixels"),
    ("ALL", "label", lambda _: None, "label is missing, but network.num_classes is 5"),
    ("ALL", "label", lambda b: b.label + 2, r"label has values from 2 to 5, .*\[0, 5\)"),
    ("ALL", "label", lambda b: b.label.int(), r"label is int32 \(4,\), not int64 \(4,\)"),
    ("BASE", "label", lambda b: b.t.long(), "label is given, but network.num_classes is 0"),
    ("ALL", "image", lambda _: None, "image is missing, but network.image_channels is 2"),
    ("ALL", "image", lambda b: b.image[:, :1], r"image is \(4, 1, 5, 7\), not \(4, 2, 5, 7\)"),
    ("ALL", "image", lambda b: b.image * 9, "image has values from"),
    ("ALL", "self_cond", lambda _: None, "self_cond is missing, .*self_conditioning is True"),
    ("ALL", "self_cond", lambda b: b.self_cond + 1, "self_cond has values from 1 to 2"),
    ("BASE", "self_cond", lambda b: b.keep, "self_cond is given, .*self_conditioning is False"),
]  # fmt: skip
TEXTS = [
    ({"emb": torch.zeros(4, 4, 16)}, "emb is 16 wide, network.text_dim is 12\n\nhint: .*encoder"),
    ({"mask": None}, "text.mask is missing: which of 4 tokens are padding"),
    ({"mask": torch.ones(4, 4)}, r"text.mask is float32 \(4, 4\), not bool \(4, 4\)"),
    ({"mask": torch.ones(4, 5, dtype=torch.bool)}, r"text.mask is bool \(4, 5\), not"),
    ({"emb": torch.zeros(3, 4, 12)}, r"text.emb is \(3, 4, 12\), not \(4, l, 12\)"),
    ({"emb": torch.full((4, 4, 12), torch.inf)}, "text.emb has values that are not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), X0)
def test_images_that_do_not_fit_are_refused(toy, change, message):
    with pytest.raises(ConfigError, match=message):
        check_batch(toy.BASE, changed(toy, "BASE", x0=change))


@pytest.mark.parametrize(("name", "field", "change", "message"), OTHERS)
def test_fields_that_do_not_fit_are_refused(toy, name, field, change, message):
    with pytest.raises(ConfigError, match=message):
        check_batch(getattr(toy, name), changed(toy, name, **{field: change}))


@pytest.mark.parametrize(("keys", "message"), TEXTS)
def test_text_that_does_not_fit_is_refused(toy, keys, message):
    with pytest.raises(ConfigError, match=message):
        check_batch(toy.BASE, changed(toy, "BASE", text=lambda _: text_with(toy, **keys)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x0: x0.clamp(-1, 1).abs(), True),  # [0, 1] where [-1, 1] is due
        (lambda x0: x0, False),
        (lambda x0: x0.abs() * 0.9, False),  # does not reach 1
        (lambda x0: x0.abs() - 1e-2, False),  # goes below 0
    ],
)
def test_batches_that_look_like_images_in_0_to_1_are_warned_of(toy, change, told):
    batch = toy.train_batch(toy.BASE, b=8)
    batch = dataclasses.replace(batch, x0=change(batch.x0))
    with (
        contextlib.nullcontext()
        if not told
        else pytest.warns(
            UserWarning,
            match=r"x0 has values from .* in 8 images, where \[-1, 1\] is due: .*2 \* x - 1",
        )
    ):
        check_batch(toy.BASE, batch)
    few = {key: getattr(batch, key)[:7] for key in ("x0", "eps", "t", "keep")}
    words = Text(batch.text.emb[:7], batch.text.mask[:7])
    check_batch(toy.BASE, dataclasses.replace(batch, text=words, **few))  # too few to tell
