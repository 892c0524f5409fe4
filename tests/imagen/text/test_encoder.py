import shutil
from dataclasses import replace

import numpy as np
import pytest

from imagen.config import build
from imagen.errors import ConfigError
from imagen.member import Text, present
from imagen.text.batch import batch
from imagen.text.config import TextConfig
from imagen.text.encoder import encoder_fingerprint, load_encoder

pytestmark = pytest.mark.slow

KINDS = ["tiny-t5", "t5", "v1_1", "mt5", "umt5", "byt5"]
CAPTIONS = ["a red square", "", "the cat sat on a mat, a dog of seven", "star", "a red square"]


@pytest.fixture
def text_of(saved_encoder):
    def make(kind: str, **changes) -> TextConfig:
        name = kind if kind == "tiny-t5" else str(saved_encoder(kind))
        return TextConfig(encoder=name, **changes)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_does_not_depend_on_its_neighbours(kind, text_of):
    encoder = load_encoder(text_of(kind))
    together = encoder.encode([*CAPTIONS, *(f"a cat {'on a mat ' * n}" for n in range(12))])
    for caption, emb in zip(CAPTIONS, together, strict=False):
        (alone,) = encoder.encode([caption])
        assert alone.dtype == np.float32
        np.testing.assert_allclose(emb, alone, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_gives_what_the_model_gives_for_one_caption(kind, text_of):
    import torch

    encoder = load_encoder(text_of(kind))
    for caption, emb in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = torch.tensor(encoder.tokenize([caption]).ids)
        with torch.inference_mode():
            wanted = encoder._model(input_ids=ids).last_hidden_state[0]  # no mask, no padding
        np.testing.assert_allclose(emb, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_to_256_changes_nothing_and_a_missing_mask_would(kind, text_of):
    import torch

    encoder = load_encoder(text_of(kind))
    for caption, emb in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = torch.zeros(1, 256, dtype=torch.int64)
        ids[0, : len(emb)] = torch.tensor(encoder.tokenize([caption]).ids[0])
        mask = (torch.arange(256) < len(emb))[None]
        with torch.inference_mode():
            padded = encoder._model(ids, attention_mask=mask).last_hidden_state[0, : len(emb)]
            unmasked = encoder._model(ids).last_hidden_state[0, : len(emb)]
        np.testing.assert_allclose(padded.numpy(), emb, atol=1e-4)
        assert np.abs(unmasked.numpy() - emb).max() > 0.05


@pytest.mark.parametrize("cleaning", ["light", "none", "web"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_hold_real_tokens_only_and_an_empty_caption_is_its_end_alone(kind, cleaning, text_of):
    encoder = load_encoder(text_of(kind, cleaning=cleaning))
    ids = encoder.tokenize(CAPTIONS).ids
    assert [len(e) for e in encoder.encode(CAPTIONS)] == [len(row) for row in ids]
    assert {row[-1] for row in ids} == {1}  # </s>
    nothing = ["", "  ", "\t\n", "\u200b\ufeff"]
    rows = encoder.tokenize(nothing)
    assert rows.ids == [[1]] * 4
    assert rows.empty == 4
    (null, *others) = encoder.encode(nothing)
    assert null.shape == (1, encoder.dim)
    assert all(np.array_equal(null, other) for other in others)
    text = Text(*batch(encoder.encode([*nothing, "a"])))
    assert present(text).tolist() == [0, 0, 0, 0, 1]  # networks are told that there is no text


def test_a_caption_that_cleans_to_nothing_is_the_null_text(text_of):
    web = load_encoder(text_of("t5", cleaning="web"))
    rows = web.tokenize(["<br>", "IMG_0001.JPG", "<b>a cat</b>", "a cat"])
    assert rows.ids[:2] == [[1], [1]]
    assert rows.empty == 2
    assert rows.ids[2] == rows.ids[3]
    assert len(load_encoder(text_of("t5")).tokenize(["<br>"]).ids[0]) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_close_whatever_the_neighbours(kind, text_of):
    import torch

    encoder = load_encoder(text_of(kind, dtype="bfloat16"))
    assert {p.dtype for p in encoder._model.parameters()} == {torch.bfloat16}
    exact = load_encoder(text_of(kind)).encode(CAPTIONS)
    together = encoder.encode([*CAPTIONS, *(f"a cat {'on a mat ' * n}" for n in range(12))])
    for caption, emb, wanted in zip(CAPTIONS, together, exact, strict=False):
        (alone,) = encoder.encode([caption])
        for got, true in ((emb, alone), (emb, wanted)):
            assert np.linalg.norm(got - true) <= 3e-2 * np.linalg.norm(true)
            assert np.vdot(got, true) >= 0.999 * np.linalg.norm(got) * np.linalg.norm(true)
        assert not np.array_equal(emb, wanted)  # it did compute in bfloat16


def test_encoding_a_shard_twice_gives_the_same_bytes(text_of):
    encoder = load_encoder(text_of("tiny-t5"))
    rows = encoder.tokenize([f"{'word ' * (n % 9)}{n}" for n in range(200)]).ids
    flat, offsets = encoder.encode_ids(rows, np.float16)
    again, _ = encoder.encode_ids(rows, np.float16)
    assert flat.dtype == np.float16
    assert flat.tobytes() == again.tobytes()
    assert offsets.dtype == np.int64
    assert list(np.diff(offsets)) == [len(row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_over_the_batch_are_encoded_alone_and_alike(kind, text_of):
    captions = [*CAPTIONS, "on the mat " * 30]
    small = load_encoder(text_of(kind), batch_tokens=8)
    assert len(small.tokenize(captions).ids[-1]) > 8
    for emb, wanted in zip(
        small.encode(captions), load_encoder(text_of(kind)).encode(captions), strict=True
    ):
        np.testing.assert_allclose(emb, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "caption", "pieces"),
    [
        ("tiny-t5", "Red", ["#16335", "</s>"]),
        ("t5", "a red z", ["▁a", "▁red", "▁", "z", "</s>"]),
        ("byt5", "aé", ["a", "Ã", "©", "</s>"]),
    ],
)
def test_pieces_say_what_a_caption_was_cut_into(kind, caption, pieces, text_of):
    encoder = load_encoder(text_of(kind))
    (row,) = encoder.tokenize([caption]).ids
    assert encoder.pieces(row) == pieces
    assert encoder.pieces([10**6]) == ["#1000000"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_caption_is_the_caption_of_its_first_tokens_with_its_end(kind, text_of):
    long = load_encoder(text_of(kind)).tokenize(["a red cat sat on the mat"]).ids[0]
    rows = load_encoder(text_of(kind, max_tokens=5)).tokenize(["a red cat sat on the mat", "a"])
    assert rows.ids[0] == [*long[:4], 1]
    assert (rows.truncated, rows.lost_tokens) == (1, len(long) - 5)


def test_long_captions_are_cut_at_the_configured_length(text_of):
    encoder = load_encoder(text_of("t5", max_tokens=6))
    rows = encoder.tokenize(["a red square on a blue circle"])
    assert (len(rows.ids[0]), rows.truncated, rows.lost_tokens) == (6, 1, 2)
    assert len(encoder.encode(["a red square on a blue circle"])[0]) == 6


@pytest.mark.parametrize("kind", ["tiny-t5", "t5"])
def test_the_fingerprint_follows_what_decides_an_embedding(kind, text_of):
    text = text_of(kind)
    prints = [
        encoder_fingerprint(text),
        encoder_fingerprint(replace(text, max_tokens=64)),
        encoder_fingerprint(replace(text, dtype="bfloat16")),
        encoder_fingerprint(replace(text, cleaning="none")),
        encoder_fingerprint(replace(text, cleaning="web")),
    ]
    assert len(set(prints)) == 5
    assert load_encoder(text).fingerprint == prints[0]


def test_the_fingerprint_is_of_content_not_of_the_folder(text_of, tmp_path):
    text = text_of("t5")
    copy = tmp_path / "copy"
    shutil.copytree(text.encoder, copy)
    moved = replace(text, encoder=str(copy))
    assert encoder_fingerprint(moved) == encoder_fingerprint(text)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert encoder_fingerprint(moved) != encoder_fingerprint(text)


def test_the_fingerprint_of_the_default_encoder_is_frozen():
    assert encoder_fingerprint(TextConfig()) == "771e4690429c6698"  # embeddings on disk have it


@pytest.mark.parametrize("dtype", ["float16", "half"])
def test_float16_is_refused_with_the_reason_and_a_way_out(dtype):
    reason = f"dtype '{dtype}' is refused: T5 .* overflow float16.*(.|\n)*hint: use dtype bfloat16"
    with pytest.raises(ConfigError, match=reason):
        build(TextConfig, {"dtype": dtype}, "x.yaml")
    with pytest.raises(ConfigError, match=reason):
        TextConfig(dtype=dtype)


def test_an_unknown_dtype_or_cleaning_is_refused_with_what_is_known():
    with pytest.raises(ConfigError, match="dtype 'int8' is none of float32, bfloat16"):
        TextConfig(dtype="int8")
    with pytest.raises(ConfigError, match="`cleaning`: Input should be 'light', 'none' or 'web'"):
        build(TextConfig, {"cleaning": "deepfloyd"})


def test_a_name_that_cannot_be_fetched_offline_is_an_error_with_a_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"is not on this machine(.|\n)*hint: .* `tiny-t5`, which"
    ):
        encoder_fingerprint(TextConfig(encoder="google/t5-v1_1-xl"))


def test_a_name_that_cannot_be_one_is_an_error():
    with pytest.raises(ConfigError, match="is no folder and no name on the Hugging Face hub"):
        load_encoder(TextConfig(encoder="./no/such/folder!"))


def test_a_folder_without_weights_is_an_error(text_of, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"there is no \*\.safetensors .* in"):
        load_encoder(TextConfig(encoder=str(tmp_path)))


def test_a_model_of_another_family_is_refused(text_of, tmp_path):
    from transformers import BertConfig, BertModel

    shutil.copy(f"{text_of('t5').encoder}/tokenizer.json", tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=8, intermediate_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a 'bert' model; supported are t5, mt5, umt5"):
        load_encoder(TextConfig(encoder=str(tmp_path)))


def test_missing_weights_are_not_made_up(text_of, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(text_of("umt5").encoder, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 encoder weights, for example .*block\.1"):
        load_encoder(TextConfig(encoder=str(tmp_path / "cut")))


@pytest.fixture
def copy_of(text_of, tmp_path):
    """A copy of a saved encoder without some of its files."""

    def make(kind: str, *gone: str):
        shutil.copytree(text_of(kind).encoder, tmp_path / "copy")
        for name in gone:
            (tmp_path / "copy" / name).unlink()
        return tmp_path / "copy"

    return make


@pytest.mark.parametrize("gone", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_encoded(copy_of, gone):
    folder = copy_of("t5", *gone)
    for use in (encoder_fingerprint, load_encoder):
        with pytest.raises(ConfigError, match=r"there is no tokenizer \(tokenizer\.json or spiece"):
            use(TextConfig(encoder=str(folder)))


def test_weights_that_are_a_pickle_are_refused_with_a_way_to_convert_them(copy_of):
    folder = copy_of("t5", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"would run code")
    with pytest.raises(
        ConfigError,
        match=r"no \*\.safetensors \(weights in pickles are not read\)(.|\n)*hint: .*python",
    ):
        load_encoder(TextConfig(encoder=str(folder)))


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("tokenizer.json", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
        ("config.json", "config"),
        ("model.safetensors", "model"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_folder(copy_of, file, what):
    folder = copy_of("t5")
    (folder / file).write_bytes(b"{")
    with pytest.raises(ConfigError, match=rf"the {what} in `.*copy` cannot be read: \w+Error: "):
        load_encoder(TextConfig(encoder=str(folder)))
