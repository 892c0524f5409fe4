from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = ["a", "the", "red", "green", "blue", "square", "circle", "star"]
WORDS += ["cat", "dog", "sat", "on", "mat", "of", "seven"]
LETTERS = "abcdefghijklmnopqrstuvwxyz,.!"


def unigram_tokenizer():
    """A real Unigram tokenizer as T5 has it, with a vocabulary of our own."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -2.0) for word in WORDS]
    letters = [("▁", -4.0), *((letter, -5.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0)


def enlivened(model):
    """Make positions and masks matter: transformers' own random weights attend almost evenly."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name:
                weight.normal_(std=2)
            elif name.endswith(("SelfAttention.o.weight", "wo.weight")):
                weight.mul_(3)
    return model.eval()


def models(kind: str):
    """Return config class, model class and options of a kind; only ByT5 is the encoder alone."""
    import transformers as t

    gated = {"feed_forward_proj": "gated-gelu"}
    return {
        "t5": (t.T5Config, t.T5ForConditionalGeneration, {}),
        "v1_1": (t.T5Config, t.T5ForConditionalGeneration, gated | {"tie_word_embeddings": False}),
        "mt5": (t.MT5Config, t.MT5ForConditionalGeneration, gated),
        "umt5": (t.UMT5Config, t.UMT5ForConditionalGeneration, gated),
        "byt5": (t.T5Config, t.T5EncoderModel, gated),
    }[kind]


def save(kind: str, folder: Path, **options) -> None:
    """Save a small random model and its tokenizer as their makers do."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(5)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config, model, more = models(kind)
    tokenizer = transformers.ByT5Tokenizer() if kind == "byt5" else unigram_tokenizer()
    tokenizer.save_pretrained(folder)
    rows = 384 if kind == "byt5" else len(tokenizer)
    made = enlivened(model(config(vocab_size=rows, **sizes, **more)))
    made.to(options.pop("dtype", None)).save_pretrained(folder, **options)


@pytest.fixture(scope="session")
def lively():
    """Make positions and neighbours matter in a random model: `lively(model)` returns it."""
    return enlivened


@pytest.fixture(scope="session")
def save_encoder():
    """Save a small random model of a kind: `save_encoder(kind, folder, **save_pretrained's)`."""
    return save


@pytest.fixture(scope="session")
def saved_encoder(tmp_path_factory) -> Callable[[str], Path]:
    """Folders of small random models as `save_pretrained` writes them."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            save(kind, made[kind])
        return made[kind]

    return folder
