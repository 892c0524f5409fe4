import numpy as np
import pytest

from imagen.data import digits


def test_there_are_1797_grey_images_of_32_pixels_and_all_ten_digits():
    found = digits.images()
    assert len(found) == 1797
    assert {image.size for image, _ in found} == {(32, 32)}
    assert {image.mode for image, _ in found} == {"L"}
    assert sorted({digit for _, digit in found}) == list(range(10))


def test_upsampling_keeps_the_scan():
    from sklearn.datasets import load_digits

    scans = load_digits().images
    for (image, _), scan in zip(digits.images()[:50], scans[:50], strict=True):
        means = np.asarray(image, dtype=np.float64).reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.corrcoef(means.ravel(), scan.ravel())[0, 1] > 0.97


def test_every_phrasing_of_every_digit_says_that_digit():
    texts = {
        digits.caption(digit, p): digit for digit in range(10) for p in range(len(digits.PHRASINGS))
    }
    assert len(digits.PHRASINGS) >= 5
    assert len(texts) == 10 * len(digits.PHRASINGS)
    assert all(digits.digit_of(text) == digit for text, digit in texts.items())


def test_a_caption_that_is_no_digit_is_refused():
    with pytest.raises(ValueError, match="no digit caption: 'eleven'"):
        digits.digit_of("eleven")
