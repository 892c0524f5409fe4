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


@pytest.fixture(scope="session")
def saved_encoder(tmp_path_factory) -> Callable[[str], Path]:
    """Folders of small random models as `save_pretrained` writes them: t5, umt5, byt5."""
    import torch
    import transformers

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}

    def save(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(5)
        if kind == "byt5":
            transformers.ByT5Tokenizer().save_pretrained(folder)
            config = transformers.T5Config(vocab_size=384, **sizes)
            transformers.T5EncoderModel(config).save_pretrained(folder)
            return folder
        tokenizer = unigram_tokenizer()
        tokenizer.save_pretrained(folder)
        if kind == "umt5":
            config = transformers.UMT5Config(vocab_size=len(tokenizer), **sizes)
            transformers.UMT5EncoderModel(config).save_pretrained(folder)
        else:  # the whole encoder-decoder, as most T5 checkpoints are
            config = transformers.T5Config(vocab_size=len(tokenizer), **sizes)
            transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
        return folder

    made: dict[str, Path] = {}
    return lambda kind: made[kind] if kind in made else made.setdefault(kind, save(kind))
