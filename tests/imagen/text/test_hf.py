"""Encoders out of checkpoints as they are published: whole models, shards, other precisions."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest

from imagen.config import build
from imagen.errors import ConfigError
from imagen.member import MemberConfig
from imagen.project import check_chain
from imagen.text import hf
from imagen.text.config import TextConfig
from imagen.text.encoder import load_encoder

pytestmark = pytest.mark.slow

WHOLE = ["t5", "v1_1", "mt5", "umt5"]
CAPTIONS = ["a red square", "", "the cat sat on a mat, a dog of seven"]
BIG = 256 * 2**20


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_checkpoint_gives_what_its_own_encoder_gives(kind, saved_encoder):
    import torch
    import transformers

    folder = str(saved_encoder(kind))
    encoder = load_encoder(TextConfig(encoder=folder))
    assert [
        n for n, _ in encoder._model.named_parameters() if "decoder" in n or "lm_head" in n
    ] == []
    whole = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval().get_encoder()
    for caption, emb in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = torch.tensor(encoder.tokenize([caption]).ids)
        with torch.inference_mode():
            wanted = whole(input_ids=ids).last_hidden_state[0]
        np.testing.assert_allclose(emb, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
@pytest.mark.parametrize("kind", ["v1_1", "umt5"])
def test_word_embeddings_are_found_under_either_name(kind, kept, saved_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy_but(saved_encoder(kind), tmp_path, "model.safetensors")
    state = load_file(saved_encoder(kind) / "model.safetensors")
    state[kept] = state.pop("shared.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, other in zip(
        load_encoder(TextConfig(encoder=str(tmp_path))).encode(CAPTIONS),
        load_encoder(TextConfig(encoder=str(saved_encoder(kind)))).encode(CAPTIONS),
        strict=True,
    ):
        assert np.array_equal(name, other)


def copy_but(source: Path, target: Path, *gone: str) -> None:
    for path in source.iterdir():
        if path.name not in gone:
            (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("kind", WHOLE)
def test_shards_with_an_index_give_the_same_embeddings(kind, saved_encoder, save_encoder, tmp_path):
    save_encoder(kind, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-0*.safetensors"))) >= 3
    assert (tmp_path / "model.safetensors.index.json").exists()
    sharded = load_encoder(TextConfig(encoder=str(tmp_path))).encode(CAPTIONS)
    whole = load_encoder(TextConfig(encoder=str(saved_encoder(kind)))).encode(CAPTIONS)
    assert all(np.array_equal(a, b) for a, b in zip(sharded, whole, strict=True))


def test_a_shard_that_is_missing_is_an_error_that_names_it(save_encoder, tmp_path):
    save_encoder("t5", tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("model-0*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ConfigError, match=rf"the model in .* cannot be read: .*{gone.name}"):
        load_encoder(TextConfig(encoder=str(tmp_path)))


def peak_growth(load) -> int:
    """Return by how many bytes this process' peak memory exceeds, during `load()`, what it has."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        pytest.skip("peak memory is measured by Linux' /proc")
    before = peak()
    load()
    return peak() - before


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_the_decoders_weights_are_never_in_memory(saved_encoder, tmp_path, capfd):
    from safetensors.torch import load_file

    small = saved_encoder("mt5")
    copy_but(small, tmp_path, "model.safetensors")
    data = (small / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = "decoder.block.1.layer.2.DenseReluDense.wi_2.weight"
    end = len(body) + BIG
    header[name] = {"dtype": "F32", "shape": [BIG // 4096, 1024], "data_offsets": [len(body), end]}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + body)
        file.truncate(8 + len(text) + end)  # a hole: takes no disk, reads as zeros
    hf.load_model(str(small), "float32", "cpu")  # imports, and what is allocated once
    assert peak_growth(lambda: hf.load_model(str(tmp_path), "float32", "cpu")) < BIG / 16

    def read_all():  # that it would have been seen
        return [float(w.sum()) for w in load_file(tmp_path / "model.safetensors").values()]

    assert peak_growth(read_all) > BIG / 2
    assert capfd.readouterr().err == ""  # no bar, no list of a decoder's unexpected weights


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_are_computed_with_in_the_precision_that_is_asked_for(
    kind, stored, saved_encoder, save_encoder, tmp_path
):
    import torch

    save_encoder(kind, tmp_path, dtype=getattr(torch, stored))
    for dtype in ("float32", "bfloat16"):
        encoder = load_encoder(TextConfig(encoder=str(tmp_path), dtype=dtype))
        assert {p.dtype for p in encoder._model.parameters()} == {getattr(torch, dtype)}
        (emb,) = encoder.encode(["a red cat"])
        (wanted,) = load_encoder(TextConfig(encoder=str(saved_encoder(kind)))).encode(["a red cat"])
        assert np.linalg.norm(emb - wanted) <= 3e-2 * np.linalg.norm(wanted)


def test_the_width_is_the_configs_and_a_network_of_another_width_is_refused(saved_encoder):
    text = TextConfig(encoder=str(saved_encoder("umt5")))
    assert text.dim == 32
    assert load_encoder(text).dim == 32
    network = {"kind": "base", "widths": [16], "blocks": [1], "self_attention": [False]}
    network |= {"cross_attention": [True], "cond_dim": 16, "text_dim": 64, "head_dim": 16}
    member = build(MemberConfig, {"size": 8, "network": network})
    wanted = (
        r"member base has network\.text_dim 64, the encoder .*umt5.* is 32 wide(.|\n)*hint: set"
    )
    with pytest.raises(ConfigError, match=wanted):
        check_chain({"base": member}, text)


def test_the_width_of_an_encoder_that_is_not_here_is_unknown(tmp_path):
    assert TextConfig(encoder="google/t5-v1_1-xl").dim is None
    (tmp_path / "config.json").write_text("{")
    assert TextConfig(encoder=str(tmp_path)).dim is None


@pytest.mark.parametrize("kind", WHOLE)
def test_a_tokenizer_of_sentencepiece_alone_is_read(kind, saved_encoder, tmp_path):
    folder = bare(saved_encoder(kind), tmp_path, vocab_size=22)
    rows = load_encoder(TextConfig(encoder=str(folder))).tokenize(["a red square", "a blue circle"])
    assert rows.ids[0] != rows.ids[1]
    assert {row[-1] for row in rows.ids} == {1}
    assert all(2 < token < 22 for row in rows.ids for token in row[:-1])


def bare(saved: Path, tmp_path: Path, **options) -> Path:
    """Return a copy of a saved encoder whose tokenizer is a SentencePiece vocabulary alone."""
    import sentencepiece

    folder = tmp_path / "encoder"
    folder.mkdir()
    copy_but(saved, folder, "tokenizer.json", "tokenizer_config.json")
    (tmp_path / "text").write_text("a red square on a blue circle\n" * 40 + "the cat sat\n" * 40)
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(folder / "spiece"),
        minloglevel=3,
        **(ids | options),
    )
    return folder


def test_a_character_outside_a_bare_vocabulary_is_its_bytes(saved_encoder, tmp_path):
    options = {"vocab_size": 278, "byte_fallback": True}
    folder = bare(saved_encoder("umt5"), tmp_path, **options)
    rows = hf.load_tokenizer(str(folder)).ids(["猫", "犬", "a cat"])
    assert [len(row) >= 3 and 2 not in row for row in rows] == [True] * 3
    assert rows[0] != rows[1]


def test_the_pieces_of_a_bare_vocabulary_spell_the_caption(saved_encoder, tmp_path):
    encoder = load_encoder(
        TextConfig(encoder=str(bare(saved_encoder("t5"), tmp_path, vocab_size=22)))
    )
    (row,) = encoder.tokenize(["a red cat"]).ids
    assert "".join(encoder.pieces(row)) == "▁a▁red▁cat</s>"
    assert encoder.pieces([0, 22, -1]) == ["<pad>", "#22", "#-1"]


def test_a_damaged_bare_vocabulary_is_an_error_that_names_the_folder(saved_encoder, tmp_path):
    folder = bare(saved_encoder("umt5"), tmp_path, vocab_size=22)
    (folder / "spiece.model").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"the tokenizer in `.*encoder` cannot be read: Value"):
        hf.load_tokenizer(str(folder))


SPELLED = "<extra_id_0> red </s> <pad> cat <unk> sat <s>"


@pytest.mark.parametrize("kind", ["t5", "byt5", "bare"])
def test_a_special_token_that_a_caption_spells_is_text(kind, saved_encoder, tmp_path):
    if kind == "bare":
        folder = str(bare(saved_encoder("umt5"), tmp_path, vocab_size=22))
    else:
        folder = str(saved_encoder(kind))
    encoder = load_encoder(TextConfig(encoder=folder))
    (row,) = encoder.tokenize([SPELLED]).ids
    assert 1 not in row[:-1]  # the end of sequence
    assert 0 not in row  # padding
    if kind == "byt5":
        assert bytes(i - 3 for i in row[:-1]).decode().replace("< ", "<") == SPELLED
    (emb,) = encoder.encode([SPELLED])  # no id beyond the embeddings
    assert emb.shape == (len(row), 32)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_the_vocabulary_that_was_trained_with_goes_before_what_was_made_of_it(
    name, saved_encoder, tmp_path
):
    folder = bare(saved_encoder("umt5"), tmp_path, vocab_size=22)
    alone = hf.load_tokenizer(str(folder)).ids(["a red square"])
    (folder / "spiece.model").rename(folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((saved_encoder("umt5") / file).read_bytes())
    assert hf.load_tokenizer(str(folder)).ids(["a red square"]) == alone
    (folder / name).unlink()
    assert hf.load_tokenizer(str(folder)).ids(["a red square"]) != alone


def test_a_tokenizer_of_a_larger_model_is_an_error(saved_encoder, tmp_path):
    folder = bare(saved_encoder("umt5"), tmp_path, vocab_size=278, byte_fallback=True)
    with pytest.raises(ConfigError, match=r"gives id \d+, its weights have \d+ embeddings"):
        load_encoder(TextConfig(encoder=str(folder))).encode(["a red square on a blue circle"])
