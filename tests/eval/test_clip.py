"""CLIP by a small random one, saved as transformers saves it."""

import json
import os

import numpy as np
import pytest
import torch

from eval import clip, extractors
from eval.clip import Clip, Preprocessing
from eval.config import EvalSection, FeaturesConfig
from imagen.errors import ConfigError

WORDS = ["<|startoftext|>", "<|endoftext|>", "a", "red", "blue", "circle", "square", "of", "the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    path = str(tmp_path_factory.mktemp("clip"))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "initializer_factor": 30.0}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": 9, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(path)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="the"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{WORDS[0]} $A {WORDS[1]}", special_tokens=[(WORDS[0], 0), (WORDS[1], 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=WORDS[0], eos_token=WORDS[1], pad_token=WORDS[1]
    ).save_pretrained(path)
    with open(f"{path}/preprocessor_config.json", "w") as file:
        json.dump(preprocessing(), file)
    return path


def preprocessing(**changes):
    return {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_normalize": True,
        "do_center_crop": True,
        "resample": 3,
        **changes,
    }


def pictures(n, side=48, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (side, side, channels), dtype=np.uint8) for _ in range(n)]


def test_embeddings_are_those_of_the_model(folder):
    from transformers import CLIPModel

    model, found = CLIPModel.from_pretrained(folder), Clip(folder, "cpu")
    images = pictures(3)
    pixels = torch.from_numpy(np.stack([Preprocessing.of(preprocessing())(i) for i in images]))
    tokens = torch.tensor([[0, 2, 3, 5, 1, 1, 1, 1]])  # a red circle
    with torch.no_grad():
        want = model(input_ids=tokens, pixel_values=pixels)
    np.testing.assert_allclose(found.images(images), want.image_embeds, atol=1e-5)
    np.testing.assert_allclose(found.texts(["a red circle"]), want.text_embeds, atol=1e-5)
    assert np.abs(np.diff(found.images(images), axis=0)).max() > 1e-3


def test_scores_do_not_depend_on_neighbours_and_long_texts_are_cut(folder):
    found = Clip(folder, "cpu")
    alone = found.texts(["a red circle"])
    texts = ["a blue square of the red circle of the blue square", "a red circle"]
    np.testing.assert_allclose(found.texts(texts)[1:], alone, atol=1e-6)
    np.testing.assert_allclose(
        found.images(pictures(3))[2:], found.images(pictures(3)[2:]), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(32, 32), (48, 48), (40, 64), (70, 33)])
def test_pictures_are_prepared_as_transformers_does_it(shape):
    from transformers import CLIPImageProcessorPil

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = CLIPImageProcessorPil(**preprocessing())(images=[image], return_tensors="np")
    found = Preprocessing.of(preprocessing())(image)
    np.testing.assert_allclose(found, wanted["pixel_values"][0], atol=2e-6)


def test_configs_of_other_models_are_read_too():
    siglip = preprocessing(size={"height": 24, "width": 20}, do_center_crop=None)
    assert Preprocessing.of(siglip)(pictures(1)[0]).shape == (3, 24, 20)
    old = preprocessing(size=16, crop_size=16, do_normalize=False)
    found = Preprocessing.of(old)(pictures(1, channels=1)[0])
    assert found.shape == (3, 16, 16)
    assert 0 <= found.min() < found.max() <= 1


def test_an_extractor_gives_arrays_of_both_for_images_of_any_channels(folder):
    section = EvalSection(clip=folder, features=FeaturesConfig(network="none"))
    extractors.check(section)
    extractor = extractors.make(section, "cpu")
    assert extractor.fingerprint == extractors.fingerprint(section) != ""
    arrays = extractor(pictures(2, channels=1), ["a red circle", "a blue square"])
    assert {name: rows.shape for name, rows in arrays.items()} == {
        "clip_image": (2, 8),
        "clip_text": (2, 8),
    }
    for rows in arrays.values():
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_the_fingerprint_changes_with_the_weights(folder, tmp_path):
    import shutil

    copy = str(tmp_path / "copy")
    shutil.copytree(folder, copy)
    assert clip.fingerprint(copy) == clip.fingerprint(folder)
    with open(f"{copy}/config.json", "a") as file:
        file.write(" ")
    assert clip.fingerprint(copy) != clip.fingerprint(folder)


@pytest.mark.parametrize(
    "gone", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_folder_that_lacks_a_file_is_refused_before_anything_is_sampled(folder, tmp_path, gone):
    import shutil

    copy = str(tmp_path / "copy")
    shutil.copytree(folder, copy)
    os.remove(f"{copy}/{gone}")
    with pytest.raises(ConfigError, match=f"there is no .*{gone.split('.')[-1]}"):
        extractors.check(EvalSection(clip=copy))


def test_a_hub_name_that_cannot_be_fetched_says_what_to_do(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    section = EvalSection(clip="nobody/no-such-clip")
    with pytest.raises(ConfigError, match="cannot be fetched and is not on this machine") as caught:
        extractors.check(section)
    assert "eval.clip=DIR" in caught.value.hint


def test_a_model_that_embeds_no_pictures_is_refused(folder, tmp_path):
    import shutil

    from transformers import T5Config, T5EncoderModel

    copy = str(tmp_path / "t5")
    shutil.copytree(folder, copy)
    tiny = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(tiny).save_pretrained(copy)
    with pytest.raises(ConfigError, match=r"eval\.clip `.*t5`"):
        Clip(copy, "cpu")
