"""The forward pass over a stream of real tokens, beside that of transformers."""

import copy
import functools
import itertools
import weakref

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from imagen.text import flat, plan
from imagen.text.config import TextConfig
from imagen.text.encoder import TextEncoder, load_encoder
from imagen.text.tiny_t5 import HashTokenizer

pytestmark = pytest.mark.slow

KINDS = ["t5", "v1_1", "mt5", "umt5", "byt5", "silu"]
LENGTHS = [7, 1, 30, 7, 2, 300, 1, 7, 150, 30, 19]
"""Equal ones apart, single tokens, and one that reaches the widening buckets and their last."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """What these sizes need: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(kind: str, lively, dtype=torch.float32):
    """Return an encoder of transformers whose output shows a wrong position or neighbour."""
    import transformers as t

    torch.manual_seed(3)
    sizes = {"vocab_size": 90, "d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 3}
    config, model = {
        "mt5": (t.MT5Config, t.MT5EncoderModel),
        "umt5": (t.UMT5Config, t.UMT5EncoderModel),
    }.get(kind, (t.T5Config, t.T5EncoderModel))
    act = {"t5": "relu", "silu": "silu"}.get(kind, "gated-gelu")
    encoder = model._from_config(
        config(feed_forward_proj=act, num_heads=4, dropout_rate=0.5, **sizes),
        attn_implementation="sdpa",
    )
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
    return lively(encoder).to(dtype).requires_grad_(False)


def encoder_of(model, budget=None) -> TextEncoder:
    return TextEncoder(TextConfig(), HashTokenizer(), model, "", budget)


def rows_of(lengths, seed=0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[*draw.integers(2, 90, n - 1).tolist(), 1] for n in lengths]


def alone(model, row) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([row])).last_hidden_state[0].float().numpy()


def padded(model, rows) -> list[np.ndarray]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [h[: len(row)].float().numpy() for h, row in zip(hidden, rows, strict=True)]


def split(encoder: TextEncoder, rows, dtype=np.float32) -> list[np.ndarray]:
    out, offsets = encoder.encode_ids(rows, dtype)
    return [out[a:b] for a, b in itertools.pairwise(offsets)]


def near(found, wanted, per_caption=3e-2) -> None:
    """The tolerance of bfloat16: never of the largest difference."""
    assert np.linalg.norm(found - wanted) <= per_caption * np.linalg.norm(wanted)
    cosine = np.vdot(found, wanted) / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert cosine >= 0.999


@pytest.mark.parametrize("budget", [1, 40, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_transformers_gives_padded_and_alone(kind, budget, lively):
    model = made(kind, lively)
    rows = rows_of(LENGTHS)
    before = [alone(model, row) for row in rows]  # before its weights are joined
    masked = padded(model, rows)
    assert 0.5 < np.concatenate(before).std() < 2
    for emb, single, one in zip(
        split(encoder_of(model, budget), rows), before, masked, strict=True
    ):
        np.testing.assert_allclose(emb, single, atol=1e-4, rtol=0)
        np.testing.assert_allclose(emb, one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_a_wrong_position_or_a_wrong_neighbour_would_show(kind, lively):
    model = made(kind, lively)
    (right,) = split(encoder_of(model), [[5, 6, 7, 8, 9, 1]])
    (swapped,) = split(encoder_of(model), [[6, 5, 7, 8, 9, 1]])
    assert np.abs(right[2:] - swapped[2:]).max() > 0.05  # the same words elsewhere
    (other,) = split(encoder_of(model), [[5, 6, 7, 8, 10, 1]])
    assert np.abs(right[:4] - other[:4]).max() > 0.05


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_the_model_goes_on_as_it_was_and_shares_the_memory_of_its_weights(kind, lively):
    model = made(kind, lively)
    state = copy.deepcopy(model.state_dict())
    (before,) = [alone(model, [5, 6, 1])]
    encoder = encoder_of(model)
    assert np.array_equal(alone(model, [5, 6, 1]), before)
    assert all(torch.equal(w, state[name]) for name, w in model.state_dict().items())
    attention = model.encoder.block[1].layer[0].SelfAttention
    joined = encoder._flat.layers[1].qkv.untyped_storage().data_ptr()
    for linear in (attention.q, attention.k, attention.v):
        assert linear.weight.untyped_storage().data_ptr() == joined


def test_dropout_is_off_even_in_a_model_that_is_being_trained(lively):
    model = made("v1_1", lively)
    wanted = alone(model, [5, 6, 1])
    (found,) = split(encoder_of(model.train()), [[5, 6, 1]])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_buckets_and_biases_are_those_of_transformers(kind, lively):
    model = made(kind, lively)
    for block, length in itertools.product(model.encoder.block, (1, 2, 9, 129, 400)):
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            positions = flat._Positions(model.config, 400, torch.device("cpu"))
            found = positions.bias(attention.relative_attention_bias.weight, length)
            assert torch.equal(found, attention.compute_bias(length, length))


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (16, 64), (64, 300)])
def test_buckets_of_another_number_and_reach_are_those_of_transformers(buckets, furthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(-700, 701)
    wanted = T5Attention._relative_position_bucket(offsets, True, buckets, furthest)
    assert torch.equal(flat.bucket(offsets, buckets, furthest), wanted)


@pytest.mark.parametrize(("count", "length"), [(3, 1), (2, 5), (1, 70)])
def test_both_ways_to_attend_agree_and_large_scores_do_not_overflow(count, length):
    draw = torch.Generator().manual_seed(0)
    q, k, v = 3 * torch.randn(3, count, 4, length, 8, generator=draw)
    bias = torch.randn(1, 4, length, length, generator=draw)
    wanted = flat.attend(q.double(), k.double(), v.double(), bias.double()).float()
    torch.testing.assert_close(flat.attend(q, k, v, bias), wanted, atol=1e-4, rtol=0)
    assert flat.attend(30 * q, 30 * k, v, bias).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_and_order_change_nothing_but_last_bits(kind, lively):
    model = made(kind, lively)
    rows = rows_of(LENGTHS)
    first = split(encoder_of(model), rows)
    backwards = split(encoder_of(model, 100), rows[::-1])[::-1]
    among = split(encoder_of(model), [*rows_of([9] * 20 + [30] * 5, 1), *rows])[25:]
    for emb, back, crowd in zip(first, backwards, among, strict=True):
        np.testing.assert_allclose(back, emb, atol=1e-4, rtol=0)
        np.testing.assert_allclose(crowd, emb, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32_and_near_itself_among_others(kind, lively):
    rows = rows_of(LENGTHS)
    exact = split(encoder_of(made(kind, lively)), rows)
    encoder = encoder_of(made(kind, lively, torch.bfloat16))
    among = split(encoder, [*rows_of([7] * 20 + [30] * 5, 1), *rows])[25:]
    for emb, crowd, wanted in zip(split(encoder, rows), among, exact, strict=True):
        near(emb, wanted)
        near(crowd, emb)
        assert not np.array_equal(emb, wanted)


@pytest.mark.parametrize("kind", ["v1_1", "umt5"])
def test_bfloat16_is_no_further_from_float32_than_transformers_is(kind, lively):
    rows = rows_of([12] * 20)
    exact = np.concatenate(split(encoder_of(made(kind, lively)), rows))
    model = made(kind, lively, torch.bfloat16)
    theirs = np.concatenate(padded(model, rows))
    ours = np.concatenate(split(encoder_of(model), rows))
    assert np.linalg.norm(ours - exact) <= 1.1 * np.linalg.norm(theirs - exact)


def test_what_is_stored_as_float16_is_within_two_of_its_last_places(lively):
    model = made("v1_1", lively)
    rows = rows_of(LENGTHS)
    for row, half in zip(rows, split(encoder_of(model), rows, np.float16), strict=True):
        wanted = alone(model, row)
        close = np.abs(half.astype(np.float32) - wanted) <= 2 * np.spacing(np.abs(half))
        assert (close | (np.abs(wanted) < 1e-3)).all()


def test_the_same_rows_give_the_same_bytes_and_a_map_gets_them_in_place(lively, tmp_path):
    rows = rows_of(np.random.default_rng(2).integers(1, 40, 100))
    wanted, offsets = encoder_of(made("umt5", lively), 256).encode_ids(rows, np.float16)
    place = np.lib.format.open_memmap(tmp_path / "e.npy", "w+", np.float16, wanted.shape)
    encoder_of(made("umt5", lively), 256).encode_into(rows, place)
    place.flush()
    assert np.load(tmp_path / "e.npy").tobytes() == wanted.tobytes()
    assert np.diff(offsets).tolist() == [len(row) for row in rows]


def test_an_array_that_the_tokens_do_not_fill_is_refused(lively):
    encoder = encoder_of(made("t5", lively))
    for shape in ((2, 48), (4, 48), (3, 47)):
        with pytest.raises(AssertionError, match="3 tokens do not fill"):
            encoder.encode_into([[5, 6, 1]], np.empty(shape, np.float16))


def test_no_rows_are_no_work(lively):
    out, offsets = encoder_of(made("t5", lively)).encode_ids([], np.float16)
    assert (out.shape, offsets.tolist()) == ((0, 48), [0])


def test_the_outputs_of_a_shard_are_never_in_memory_together(lively, tmp_path, monkeypatch):
    encoder = encoder_of(made("t5", lively), 64)
    alive: list[weakref.ref] = []
    most = 0
    forward = flat.FlatEncoder.__call__

    def counted(self, ids, lengths):
        nonlocal most
        out = forward(self, ids, lengths)
        assert len(ids) == 64
        alive.append(weakref.ref(out))
        most = max(most, sum(ref() is not None for ref in alive))
        return out

    monkeypatch.setattr(flat.FlatEncoder, "__call__", counted)
    place = np.lib.format.open_memmap(tmp_path / "e.npy", "w+", np.float32, (1600, 48))
    encoder.encode_into(rows_of([8] * 200), place)
    assert len(alive) == 25
    assert most <= 2


def test_what_is_compiled_for_a_gpu_is_one_graph_for_any_number_of_tokens(lively, monkeypatch):
    model = made("v1_1", lively)
    encoder = encoder_of(model)
    graphs = CompileCounterWithBackend("aot_eager")  # traces all, generates no code
    whole = functools.partial(torch.compile, backend=graphs, fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    wanted = split(encoder, rows_of(LENGTHS))
    encoder._flat._pointwise.compiled()
    found = split(encoder, rows_of(LENGTHS))
    traced = graphs.frame_count
    split(encoder, rows_of([30, 12]))
    assert graphs.frame_count == traced
    assert sum(len(graph.graph.nodes) > 0 for graph in graphs.graphs) == 4
    for emb, plain in zip(found, wanted, strict=True):
        np.testing.assert_allclose(emb, plain, atol=1e-4, rtol=0)


def test_the_budget_follows_the_device_and_may_be_given():
    assert load_encoder(TextConfig())._batch_tokens == plan.CPU_TOKENS
    assert load_encoder(TextConfig(), batch_tokens=77)._batch_tokens == 77


@pytest.mark.parametrize("kind", ["t5", "v1_1", "umt5"])
def test_operations_are_those_of_transformers_without_padding(kind, lively):
    model = made(kind, lively)
    rows = rows_of([5, 9, 9, 30])
    model.set_attn_implementation("eager")  # whose products are all counted
    with FlopCounterMode(display=False) as counter:
        for row in rows:
            alone(model, row)
    encoder = encoder_of(model)
    assert encoder.flops([5, 9, 9, 30]) == counter.get_total_flops() > 0
    assert encoder.flops(np.array([5, 9, 9, 30], np.int8)) == encoder.flops([5, 9, 9, 30])
    assert encoder.flops([]) == 0


def test_the_matrix_rate_is_measured_once_and_draws_nothing(lively):
    encoder = encoder_of(made("t5", lively))
    before = torch.get_rng_state()
    rate = encoder.matmul_rate()
    assert 1e8 < rate < 1e13
    assert encoder.matmul_rate() == rate
    assert torch.equal(torch.get_rng_state(), before)
