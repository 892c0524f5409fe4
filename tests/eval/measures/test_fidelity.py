import numpy as np
import pytest
from PIL import Image

from eval.measures.fidelity import Fidelity, scaled
from imagen.data.images import decode


def photo(side, channels=3, seed=0):
    """Smooth colours, as pictures have them."""
    coarse = np.random.default_rng(seed).integers(40, 216, (6, 6, channels), dtype=np.uint8)
    return scaled(coarse, side, side, Image.Resampling.BICUBIC)


def look(pairs):
    found = Fidelity(["base", "sr1"])
    found.see({"base": [small for small, _ in pairs], "sr1": [large for _, large in pairs]})
    return found.body()["sr1"]


def small(large, side=16):
    return scaled(large, side, side, Image.Resampling.LANCZOS)


def test_a_large_picture_that_is_its_small_one_has_no_difference():
    pairs = [(small(photo(64, seed=s)), photo(64, seed=s)) for s in range(5)]
    body = look(pairs)
    assert body["consistency"]["value"] == 0
    assert body["psnr"]["value"] == pytest.approx(58.9, abs=0.1)  # 8 bits hold no more
    assert body["colour_drift"]["value"] == 0
    assert body["consistency"]["n"] == 5


def test_small_pictures_are_made_as_training_makes_them():
    import io

    out = io.BytesIO()
    Image.fromarray(photo(64)).save(out, "png")
    large, tiny = (p.transpose(1, 2, 0) for p in decode(out.getvalue(), (64, 16), 3))
    assert (small(large) == tiny).all()


def test_a_shift_of_colour_shows_as_drift_of_its_channel():
    pairs = []
    for seed in range(6):
        large = photo(64, seed=seed)
        redder = large.copy()
        redder[..., 0] += 25
        pairs.append((small(large), redder))
    body = look(pairs)
    assert body["colour_drift"]["channels"] == pytest.approx([25 / 255, 0, 0], abs=0.003)
    assert body["colour_drift"]["value"] == pytest.approx(25 / 255 / 3, abs=0.001)
    assert body["consistency"]["value"] == pytest.approx(25 / 255 / 3**0.5, abs=0.002)
    assert body["psnr"]["value"] == pytest.approx(-20 * np.log10(25 / 255 / 3**0.5), abs=0.3)


def test_sharpness_is_gained_by_detail_and_lost_by_blur():
    detailed, blurred = [], []
    for seed in range(6):
        large = photo(64, seed=seed)
        noise = np.random.default_rng(seed).integers(-30, 30, large.shape)
        noisy = np.clip(large + noise, 0, 255).astype(np.uint8)
        detailed.append((small(large), noisy))
        soft = scaled(scaled(large, 4, 4, Image.Resampling.BOX), 64, 64, Image.Resampling.BICUBIC)
        blurred.append((small(large), soft))
    assert look(detailed)["sharpness_gain"]["interval"][0] > 1.5
    assert look(blurred)["sharpness_gain"]["interval"][1] < 1


def test_grey_pictures_and_sizes_that_are_no_squares_are_compared_too():
    large = photo(64, channels=1)[:32]
    body = look([(scaled(large, 8, 16, Image.Resampling.LANCZOS), large)])
    assert body["consistency"]["value"] == 0


def test_each_member_is_compared_with_the_one_before_it():
    found = Fidelity(["base", "sr1", "sr2"])
    large = photo(64)
    middle = scaled(large, 32, 32, Image.Resampling.LANCZOS)
    wrong = np.zeros((8, 8, 3), np.uint8)
    found.see({"base": [wrong], "sr1": [middle], "sr2": [large]})
    body = found.body()
    assert body["sr2"]["consistency"]["value"] == 0
    assert body["sr1"]["consistency"]["value"] > 0.2
    assert found.of("sr2").tolist() == [0]


def test_a_base_alone_has_no_fidelity():
    found = Fidelity(["base"])
    found.see({"base": [photo(16)]})
    assert found.body() == {}
