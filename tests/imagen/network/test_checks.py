import dataclasses

import pytest
import torch

from imagen.errors import ConfigError
from imagen.network.unet import build

F = torch.zeros(3, 64)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("base", {"x": torch.zeros(3, 3, 8, 8)}, r"x has shape \(3, 3, 8, 8\), not \(b, 1, h, w\)"),
        ("base", {"x": torch.zeros(1, 8, 8)}, r"x has shape \(1, 8, 8\), not"),
        ("base", {"x": torch.zeros(3, 1, 8, 8, dtype=torch.uint8)}, "x is torch.uint8, not float"),
        ("base", {"x": torch.zeros(3, 1, 8, 7)}, "8 x 7 pixels: not both are multiples of 2"),
        ("base", {"time": torch.zeros(3, 8)}, r"time has shape \(3, 8\), not \(3, 64\)"),
        ("base", {"text_emb": torch.zeros(3, 5, 768)}, r"\(3, 5, 768\), not \(3, any, 12\)"),
        ("base", {"text_emb": None}, "text_emb is missing, which a U-Net with text_dim 12 needs"),
        ("base", {"text_mask": None}, "text_mask is missing"),
        ("base", {"text_mask": torch.zeros(3, 5)}, "text_mask is torch.float32, not bool"),
        ("base", {"text_mask": torch.ones(3, 4, dtype=torch.bool)}, "5 tokens, text_mask 4"),
        ("base", {"keep": torch.ones(2)}, r"keep has shape \(2,\), not \(3,\)"),
        ("base", {"lowres": torch.zeros(3, 1, 8, 8)}, "lowres is given to a U-Net with kind base"),
        ("base", {"aug": F}, "aug is given to a U-Net with kind base"),
        ("base", {"label": torch.zeros(3).long()}, "label is given to a U-Net with num_classes 0"),
        ("base", {"image": torch.zeros(3, 3, 8, 8)}, "U-Net with image_channels 0, which cannot"),
        ("base", {"x0_previous": torch.zeros(3, 1, 8, 8)}, "with self_conditioning False"),
        ("no_text", {"text_emb": torch.zeros(3, 5, 12)}, "U-Net with text_dim 0, which cannot"),
        ("efficient", {"lowres": None}, "lowres is missing, which a U-Net with kind efficient"),
        ("efficient", {"aug": None}, "aug is missing"),
        ("efficient", {"lowres": torch.zeros(3, 1, 4, 4)}, r"lowres has shape \(3, 1, 4, 4\), not"),
        ("everything", {"label": None}, "label is missing, which a U-Net with num_classes 5 needs"),
        ("everything", {"label": torch.zeros(3)}, "label is torch.float32, not int64"),
        ("everything", {"image": None}, "image is missing"),
        ("everything", {"image": torch.zeros(3, 3, 8, 8)}, r"not \(3, 2, any, any\)"),
        ("everything", {"x0_previous": torch.zeros(3, 3, 8, 4)}, "x0_previous has shape"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(configs, inputs, name, change, message):
    x, given = inputs(configs[name])
    x = change.get("x", x)
    given = dataclasses.replace(given, **{k: v for k, v in change.items() if k != "x"})
    with torch.device("meta"):
        net = build(configs[name])  # no weights: inputs are refused before any of them is used
    with pytest.raises(ConfigError, match=message):
        net(x, given)


def test_a_width_of_text_that_does_not_fit_has_a_hint(configs, inputs):
    x, given = inputs(configs["base"])
    given = dataclasses.replace(given, text_emb=torch.zeros(3, 5, 768))
    with pytest.raises(ConfigError, match="hint: text_dim must be the width of the text encoder"):
        build(configs["base"])(x, given)
