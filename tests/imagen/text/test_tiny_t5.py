import itertools

import numpy as np
import pytest

from imagen.data import digits
from imagen.text import tiny_t5
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder, encoder_fingerprint, load_encoder

COLOURS = ["red", "green", "blue", "yellow", "white", "black"]
SHAPES = ["square", "circle", "star", "cross", "ring", "moon"]
SCENES = [
    f"a {c1} {s1} and a {c2} {s2}"
    for c1, s1, c2, s2 in itertools.product(COLOURS, SHAPES, COLOURS, SHAPES)
    if s1 != s2 and c1 != c2
]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TextConfig())


@pytest.fixture(scope="module")
def plain(encoder):
    """The same T5 as transformers initialises it."""
    import torch
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    model = T5EncoderModel(encoder._model.config).eval()
    return TextEncoder(TextConfig(), tiny_t5.HashTokenizer(), model, "plain")


def probe_colour_of_shape(encoder: TextEncoder) -> float:
    """Share of shapes whose colour a linear map finds in the output at the shape's token.

    A little noise (0.1 of the outputs' size) stands for what training never resolves.
    """
    draw = np.random.RandomState(0)
    scenes = [SCENES[i] for i in draw.permutation(len(SCENES))]
    features, labels = [], []
    for scene, emb in zip(scenes, encoder.encode(scenes), strict=True):
        words = scene.split()
        for at in (2, 6):
            features.append(emb[at])
            labels.append(COLOURS.index(words[at - 1]))
    x = np.stack(features).astype(np.float64)
    x = np.concatenate([x + 0.1 * draw.standard_normal(x.shape), np.ones((len(x), 1))], axis=1)
    y, cut = np.array(labels), len(x) * 3 // 4
    gram = x[:cut].T @ x[:cut] + np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[:cut].T @ np.eye(len(COLOURS))[y[:cut]])
    return float(((x[cut:] @ weights).argmax(axis=1) == y[cut:]).mean())


@pytest.mark.slow
def test_it_binds_words_that_a_plainly_initialised_t5_does_not(encoder, plain):
    assert probe_colour_of_shape(encoder) > 0.99
    assert probe_colour_of_shape(plain) < 0.75  # knowing both colours but not whose gives 0.5


def test_a_word_is_embedded_by_its_neighbours(encoder, plain):
    one, two = "red square blue circle", "blue square red circle"

    def change(of: TextEncoder) -> float:
        a, b = of.encode([one, two])
        return float(np.linalg.norm(a[0] - b[2]) / np.linalg.norm(a[0]))  # "red" in both

    assert change(encoder) > 0.5
    assert change(plain) < 0.5 * change(encoder)


def test_it_is_a_t5_of_transformers(encoder):
    from transformers import T5EncoderModel

    assert type(encoder._model) is T5EncoderModel
    assert not encoder._model.training
    assert encoder._model.config._attn_implementation == "sdpa"
    assert encoder.dim == TextConfig().dim == 256


def test_each_head_looks_at_its_offset(encoder):
    attention = encoder._model.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(12, 12)[0].detach().numpy()  # (heads, query, key)
    for head, offset in enumerate(tiny_t5.OFFSETS):
        assert bias[head, 5].argmax() == 5 + offset
        assert (bias[head, 5] > 0).sum() == 1


def test_its_weights_do_not_change():
    weights = tiny_t5.weights()
    found = [float(weights["shared.weight"][i, i]) for i in (0, 100)]
    found.append(float(weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"][-1, -1]))
    np.testing.assert_allclose(found, [-0.56025147, 0.49130127, -0.001853329], rtol=1e-6)
    assert encoder_fingerprint(TextConfig()) == "771e4690429c6698"


def test_building_it_draws_nothing_from_the_global_generators(encoder):
    import torch

    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    tiny_t5.build_model()
    assert (torch.rand(1), np.random.rand()) == before


def test_the_words_of_the_demo_have_rows_of_their_own():
    texts = [digits.caption(d, p) for d in range(10) for p in range(len(digits.PHRASINGS))]
    words = {word for text in texts for word in tiny_t5._WORDS.findall(text)}
    assert len({tiny_t5.row_of(word) for word in words}) == len(words)
