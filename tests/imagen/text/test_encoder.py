import shutil
from dataclasses import replace

import numpy as np
import pytest

from imagen.config import build
from imagen.errors import ConfigError
from imagen.text.config import TextConfig
from imagen.text.encoder import encoder_fingerprint, load_encoder

pytestmark = pytest.mark.slow

KINDS = ["tiny-t5", "t5", "umt5", "byt5"]
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
def test_the_plan_and_masks_give_what_the_model_gives_for_one_caption(kind, text_of):
    import torch

    encoder = load_encoder(text_of(kind))
    for caption, emb in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = torch.tensor(encoder.tokenize([caption]).ids)
        with torch.inference_mode():
            wanted = encoder._model(input_ids=ids).last_hidden_state[0]  # no mask, no padding
        np.testing.assert_allclose(emb, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_hold_real_tokens_only_and_an_empty_caption_has_one(kind, text_of):
    encoder = load_encoder(text_of(kind))
    ids = encoder.tokenize(CAPTIONS).ids
    assert [len(e) for e in encoder.encode(CAPTIONS)] == [len(row) for row in ids]
    assert len(ids[1]) == 1
    assert {row[-1] for row in ids} == {1}  # </s>


def test_bfloat16_stays_close_whatever_the_neighbours(text_of):
    encoder = load_encoder(text_of("tiny-t5", dtype="bfloat16"))
    exact = load_encoder(text_of("tiny-t5")).encode(CAPTIONS)
    for caption, emb, wanted in zip(CAPTIONS, encoder.encode(CAPTIONS), exact, strict=True):
        (alone,) = encoder.encode([caption])
        assert np.linalg.norm(emb - alone) <= 3e-2 * np.linalg.norm(alone)
        assert np.linalg.norm(emb - wanted) <= 3e-2 * np.linalg.norm(wanted)
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
    ]
    assert len(set(prints)) == 3
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


def test_float16_is_refused():
    with pytest.raises(ConfigError, match="`dtype`: Input should be 'float32' or 'bfloat16'"):
        build(TextConfig, {"dtype": "float16"})


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


def test_a_tokenizer_of_sentencepiece_alone_is_read(copy_of, tmp_path):
    import sentencepiece

    folder = copy_of("t5", "tokenizer.json", "tokenizer_config.json")
    (tmp_path / "text").write_text("a red square on a blue circle\n" * 40 + "the cat sat\n" * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=22,
        minloglevel=3,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    rows = load_encoder(TextConfig(encoder=str(folder))).tokenize(["a red square", "a blue circle"])
    assert rows.ids[0] != rows.ids[1]
    assert {row[-1] for row in rows.ids} == {1}
    assert all(2 < token < 22 for row in rows.ids for token in row[:-1])
